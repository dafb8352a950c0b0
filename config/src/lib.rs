//! drbd.conf: text in, typed model and diagnostics out.
//!
//! [`load`] reads `/etc/drbd.conf` and what it includes into a [`Config`]: what was written, where, with the forms of
//! 0.7 and 8.3 mapped to those of 8.4. [`Config::resource_for`] turns it into a [`ResolvedResource`]: what it means for
//! one node, with inheritance, defaults and durations applied. What Tandem cannot honour is named by
//! [`ResolvedResource::support_issues`]. Nothing here does I/O but [`load`] and its relatives.
//!
//! ```
//! use std::path::Path;
//! use tandem_config::{Node, Protocol, load_text};
//!
//! let text = b"resource r0 {
//!   net { protocol C; timeout 50; }
//!   device /dev/drbd0; disk /dev/sdb1; meta-disk internal;
//!   on alpha { address 192.0.2.1:7788; }
//!   on bravo { address 192.0.2.2:7788; }
//! }";
//! let config = load_text("example", text, Path::new("/etc"))?;
//! let view = config.resource_for("r0", &Node::named("alpha"))?;
//! assert_eq!(view.peers[0].name, "bravo");
//! assert_eq!(view.peers[0].net.protocol, Protocol::C);
//! assert_eq!(view.peers[0].net.timeout.as_secs(), 5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Reading order for newcomers: `lexer`, `parser`, `ast`, `evaluate`, `model`, `inherit`.

mod ast;
pub mod diagnostics;
pub mod dump;
mod effective;
mod evaluate;
mod inherit;
mod lexer;
mod load;
mod model;
pub mod options;
mod parser;
pub mod xml;

pub use diagnostics::{Code, Diagnostic, Report, Severity, SourceMap, Span, Style};
pub use effective::*;
pub use inherit::{NameMatch, ResolveError, match_names};
pub use load::{
    Files, LoadError, NoFiles, RealFiles, load, load_all, load_from, load_text, load_text_from,
};
pub use model::*;
pub use options::{OptionSpec, Section, Support};
