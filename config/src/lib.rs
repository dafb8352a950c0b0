//! drbd.conf: text in, typed model and diagnostics out.
//!
//! Start with [`Config`] (what was written) and [`ResolvedResource`] (what it means for one node).

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

pub use diagnostics::{Code, Diagnostic, Report, Severity, SourceMap, Span, Style};
pub use effective::*;
pub use inherit::{NameMatch, ResolveError, match_names};
pub use load::{
    Files, LoadError, NoFiles, RealFiles, load, load_all, load_from, load_text, load_text_from,
};
pub use model::*;
pub use options::{OptionSpec, Section, Support};
