//! drbd.conf: text in, typed model and diagnostics out.
//!
//! Start with [`Config`] (what was written) and [`ResolvedResource`] (what it means for one node).

pub mod diagnostics;
mod effective;
mod evaluate;
mod model;
pub mod options;

pub use diagnostics::{Code, Diagnostic, Report, Severity, SourceMap, Span, Style};
pub use effective::*;
pub use model::*;
pub use options::{OptionSpec, Section, Support};
