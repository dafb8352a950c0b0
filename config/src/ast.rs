//! What the parser found, statement by statement, before anything is filled in.

use crate::diagnostics::{Diagnostic, Span};
use crate::model::{Address, Device, HostKind, MetaDisk, Options, Sections};

/// A text with its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spanned<T> {
    pub(crate) value: T,
    pub(crate) at: Span,
}

/// One thing at top level, in reading order.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    Global {
        at: Span,
        options: Options,
    },
    Common {
        at: Span,
        sections: Sections,
    },
    Resource(Box<RawResource>),
    Include(Spanned<String>),
    /// Something that was not understood; reading went on behind it.
    Error(Diagnostic),
}

/// Words that decide the dialect (spec section 1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DialectMarks {
    pub(crate) v07: bool,
    pub(crate) v9: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct RawResource {
    pub(crate) name: Spanned<String>,
    pub(crate) at: Span,
    pub(crate) sections: Sections,
    /// Statements and volumes for every host.
    pub(crate) volumes: RawVolumes,
    pub(crate) hosts: Vec<RawHost>,
    pub(crate) connections: Vec<RawConnection>,
    pub(crate) template: Option<Spanned<String>>,
    pub(crate) ignore_on: Vec<String>,
}

/// The volume statements of one host or of the resource.
#[derive(Debug, Clone, Default)]
pub(crate) struct RawVolumes {
    /// Bare `device`, `disk`, `meta-disk`: the unnumbered volume 0.
    pub(crate) bare: RawVolume,
    /// The first bare statement.
    pub(crate) bare_at: Option<Span>,
    /// `volume N { }`
    pub(crate) numbered: Vec<(u16, RawVolume)>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct RawVolume {
    pub(crate) at: Span,
    pub(crate) device: Option<Device>,
    /// `Some(None)`: `disk none`.
    pub(crate) disk: Option<Spanned<Option<String>>>,
    pub(crate) meta_disk: Option<Spanned<MetaDisk>>,
    pub(crate) disk_options: Option<Spanned<Options>>,
}

#[derive(Debug, Clone)]
pub(crate) struct RawHost {
    pub(crate) kind: HostKind,
    pub(crate) at: Span,
    /// Names after `on`; the lower resource when stacked; empty when floating.
    pub(crate) names: Vec<Spanned<String>>,
    pub(crate) node_id: Option<Spanned<u8>>,
    pub(crate) address: Option<Address>,
    pub(crate) volumes: RawVolumes,
    pub(crate) options: Option<Spanned<Options>>,
    pub(crate) proxy: Option<Spanned<crate::model::Proxy>>,
}

#[derive(Debug, Clone)]
pub(crate) struct RawConnection {
    pub(crate) mesh: bool,
    pub(crate) at: Span,
    /// The hosts of a mesh.
    pub(crate) mesh_hosts: Vec<Spanned<String>>,
    /// Host references outside `path`, two if there is no path.
    pub(crate) ends: Vec<RawEnd>,
    pub(crate) paths: Vec<(Span, Vec<RawEnd>)>,
    pub(crate) net: Option<Spanned<Options>>,
    pub(crate) disk: Option<Spanned<Options>>,
    pub(crate) volumes: Vec<(u16, Options)>,
}

/// `host NAME [address A | port N]`
#[derive(Debug, Clone)]
pub(crate) struct RawEnd {
    pub(crate) name: Spanned<String>,
    pub(crate) address: Option<Address>,
    pub(crate) port: Option<u16>,
}
