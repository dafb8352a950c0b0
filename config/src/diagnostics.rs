//! Errors and warnings about a configuration, with file, line, column and the words to type next.

use std::fmt;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// Errors collected before reading gives up; a person repairs them one by one anyway.
pub const ERRORS_MAX: usize = 20;

/// Warnings of one code that are printed in full; above, the first and a count (spec section 3.2).
pub const WARNINGS_PER_CODE_MAX: usize = 5;

/// A stretch of one file. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span {
    /// Index into [`SourceMap`].
    pub file: u32,
    /// Line of the first character.
    pub line: u32,
    /// Column of the first character.
    pub column: u32,
    /// Byte offset of the first character.
    pub offset: u32,
    /// Length in bytes; 0 at the end of a file.
    pub len: u32,
}

/// One file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// The name as it was opened, for messages.
    pub name: String,
    /// Its bytes.
    pub text: Vec<u8>,
}

/// The files of a configuration in reading order; the first is the top file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceMap {
    files: Vec<SourceFile>,
}

impl SourceMap {
    /// Adds a file and gives its index.
    pub fn add(&mut self, name: impl Into<String>, text: Vec<u8>) -> u32 {
        self.files.push(SourceFile {
            name: name.into(),
            text,
        });
        u32::try_from(self.files.len() - 1).unwrap_or(u32::MAX)
    }

    /// The file with this index.
    #[must_use]
    pub fn get(&self, file: u32) -> Option<&SourceFile> {
        self.files.get(usize::try_from(file).ok()?)
    }

    /// The name of the file with this index.
    #[must_use]
    pub fn name(&self, file: u32) -> &str {
        self.get(file).map_or("?", |f| f.name.as_str())
    }

    /// All files in reading order.
    #[must_use]
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// `FILE:LINE:COLUMN`.
    #[must_use]
    pub fn place(&self, span: Span) -> String {
        format!("{}:{}:{}", self.name(span.file), span.line, span.column)
    }
}

/// Whether a diagnostic stops the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// The configuration is used.
    Warning,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// Code of a diagnostic (spec section 3.2).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// The code as written in messages and JSON.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

codes! {
    /// Grammar.
    UnexpectedToken = "E_UNEXPECTED_TOKEN",
    /// Grammar, at the end of the file.
    UnexpectedEof = "E_UNEXPECTED_EOF",
    /// A character that belongs to no token.
    BadChar = "E_BAD_CHAR",
    /// A quote that is not closed on its line.
    UnterminatedString = "E_UNTERMINATED_STRING",
    /// A word, string or string option over its limit.
    StringTooLong = "E_STRING_TOO_LONG",
    /// A name not known in this section.
    UnknownOption = "E_UNKNOWN_OPTION",
    /// Not a number.
    BadNumber = "E_BAD_NUMBER",
    /// A number out of its range.
    Range = "E_RANGE",
    /// Not one of the words.
    Enum = "E_ENUM",
    /// Neither yes nor no.
    Bool = "E_BOOL",
    /// Something given twice.
    Duplicate = "E_DUPLICATE",
    /// Something left out.
    Missing = "E_MISSING",
    /// Form of an address.
    Address = "E_ADDRESS",
    /// Form of a device name.
    Device = "E_DEVICE",
    /// Bare device statements beside volume sections.
    VolumeMix = "E_VOLUME_MIX",
    /// Hosts with different volume numbers.
    VolumeMismatch = "E_VOLUME_MISMATCH",
    /// An include or template that cannot be read.
    Include = "E_INCLUDE",
    /// An unknown resource or host.
    Ref = "E_REF",
    /// Three or more hosts without connections, or a connection without two hosts.
    Connections = "E_CONNECTIONS",
    /// A statement that may not stand here.
    Place = "E_PLACE",
    /// Something that must not be silently ignored.
    Unsupported = "E_UNSUPPORTED",
    /// The `syncer` section.
    LegacySyncer = "W_LEGACY_SYNCER",
    /// `syncer { group }`.
    LegacyGroup = "W_LEGACY_GROUP",
    /// `incon-degr-cmd`.
    LegacyInconDegrCmd = "W_LEGACY_INCON_DEGR_CMD",
    /// `on-io-error panic`.
    LegacyPanic = "W_LEGACY_PANIC",
    /// `size` counted in KiB.
    LegacySizeUnit = "W_LEGACY_SIZE_UNIT",
    /// An option under its old name.
    Renamed = "W_RENAMED",
    /// An option that changes nothing.
    IgnoredOption = "W_IGNORED_OPTION",
    /// A feature that is not there.
    NotSupported = "W_NOT_SUPPORTED",
    /// A value brought into its range.
    Clamped = "W_CLAMPED",
    /// An option given twice in a section.
    DuplicateOption = "W_DUPLICATE_OPTION",
    /// `global` after a resource.
    GlobalOrder = "W_GLOBAL_ORDER",
    /// The own host found by its first label only.
    HostShortMatch = "W_HOST_SHORT_MATCH",
    /// A connection with a name.
    ConnectionName = "W_CONNECTION_NAME",
    /// One lower disk under two volumes.
    SharedDisk = "W_SHARED_DISK",
    /// `resync-after` names nothing that is known.
    ResyncAfter = "W_RESYNC_AFTER",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Code {
    /// Whether it stops the command.
    #[must_use]
    pub fn severity(self) -> Severity {
        if self.as_str().starts_with("E_") {
            Severity::Error
        } else {
            Severity::Warning
        }
    }
}

/// One error or warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What it is.
    pub code: Code,
    /// Where.
    pub span: Span,
    /// What could have stood there; empty for warnings.
    pub expected: Vec<String>,
    /// What stood there.
    pub found: String,
    /// The sentence that says what happened, where "expected, found" would not.
    pub message: Option<String>,
    /// The first definition of something given twice.
    pub related: Option<Span>,
    /// What to type next.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// An error of the form "expected, found".
    #[must_use]
    pub fn expected<S: Into<String>>(
        code: Code,
        span: Span,
        expected: impl IntoIterator<Item = S>,
        found: impl Into<String>,
    ) -> Self {
        Self {
            code,
            span,
            expected: expected.into_iter().map(Into::into).collect(),
            found: found.into(),
            message: None,
            related: None,
            hint: None,
        }
    }

    /// A warning with its sentence.
    #[must_use]
    pub fn warning(code: Code, span: Span, message: impl Into<String>) -> Self {
        let mut d = Self::expected(code, span, [""; 0], "");
        d.message = Some(message.into());
        d
    }

    /// With the sentence.
    #[must_use]
    pub fn saying(mut self, message: impl Into<String>) -> Self {
        self.message = Some(message.into());
        self
    }

    /// With the next thing to type.
    #[must_use]
    pub fn hinting(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With the place of the first definition.
    #[must_use]
    pub fn relating(mut self, span: Span) -> Self {
        self.related = Some(span);
        self
    }

    /// What happened, without the place.
    #[must_use]
    pub fn text(&self) -> String {
        if let Some(message) = &self.message {
            return message.clone();
        }
        let found = match self.code {
            Code::UnexpectedEof | Code::Missing | Code::UnterminatedString => self.found.clone(),
            _ => format!("'{}'", self.found),
        };
        format!("expected {}, found {found}", or_list(&self.expected))
    }

    /// One line: `FILE:LINE:COLUMN: error: TEXT [CODE]`, and the hint.
    #[must_use]
    pub fn line(&self, files: &SourceMap) -> String {
        let severity = match self.code.severity() {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let mut out = format!("{}: {severity}: {}", files.place(self.span), self.text());
        if let Some(first) = self.related {
            out.push_str(&format!("; first at {}", files.place(first)));
        }
        if let Some(hint) = &self.hint {
            out.push_str(&format!(" ({hint})"));
        }
        out
    }

    /// The line followed by the source with a caret under the place, and the hint.
    #[must_use]
    pub fn render(&self, files: &SourceMap, style: Style) -> String {
        let renderer = match style {
            Style::Plain => Renderer::plain(),
            Style::Coloured => Renderer::styled(),
        };
        let level = match self.code.severity() {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let Some(file) = files.get(self.span.file) else {
            return self.line(files);
        };
        let text = self.text();
        let (source, start) = line_of(file, self.span);
        let name = file.name.clone();
        let label = if self.expected.is_empty() {
            String::new()
        } else {
            short_label(self)
        };
        let end = (start + char_len(&source[start..], self.span.len)).min(source.len());
        let mut group = level
            .primary_title(text.as_str())
            .id(self.code.as_str())
            .element(
                Snippet::source(source.as_str())
                    .line_start(usize::try_from(self.span.line).unwrap_or(1))
                    .path(name.as_str())
                    .annotation(
                        AnnotationKind::Primary
                            .span(start..end)
                            .label(label.as_str()),
                    ),
            );
        let first = self.related.and_then(|span| {
            files
                .get(span.file)
                .map(|f| (line_of(f, span), span, f.name.clone()))
        });
        if let Some(((source, start), span, name)) = &first {
            let end = (start + char_len(&source[*start..], span.len)).min(source.len());
            group = group.element(
                Snippet::source(source.as_str())
                    .line_start(usize::try_from(span.line).unwrap_or(1))
                    .path(name.as_str())
                    .annotation(
                        AnnotationKind::Context
                            .span(*start..end)
                            .label("first here"),
                    ),
            );
        }
        if let Some(hint) = &self.hint {
            group = group.element(Level::HELP.message(hint.as_str()));
        }
        renderer.render(&[group]).to_string()
    }
}

/// Colours or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// For files and pipes.
    Plain,
    /// For terminals.
    Coloured,
}

/// The errors of a configuration that was refused, in reading order, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The files, for the places.
    pub files: SourceMap,
    /// The errors, at most [`ERRORS_MAX`].
    pub errors: Vec<Diagnostic>,
    /// Warnings found on the way.
    pub warnings: Vec<Diagnostic>,
}

impl Report {
    /// All errors with their source lines.
    #[must_use]
    pub fn render(&self, style: Style) -> String {
        let parts: Vec<String> = self
            .errors
            .iter()
            .map(|d| d.render(&self.files, style))
            .collect();
        parts.join("\n")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            f.write_str(&error.line(&self.files))?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// One line for each warning; of more than five with one code only the first and a count (spec section 3.2).
#[must_use]
pub fn summarise_warnings(files: &SourceMap, warnings: &[Diagnostic]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut done: Vec<Code> = Vec::new();
    for warning in warnings {
        if done.contains(&warning.code) {
            continue;
        }
        let count = warnings.iter().filter(|w| w.code == warning.code).count();
        let line = warning.line(files);
        if count > WARNINGS_PER_CODE_MAX {
            done.push(warning.code);
            lines.push(format!(
                "{line} [and {} more of {}]",
                count - 1,
                warning.code
            ));
        } else {
            lines.push(line);
        }
    }
    lines
}

/// `a, b or c`.
fn or_list(items: &[String]) -> String {
    match items {
        [] => "something else".to_owned(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} or {last}", head.join(", ")),
    }
}

fn short_label(d: &Diagnostic) -> String {
    const LABEL_ITEMS_MAX: usize = 4;
    if d.expected.len() > LABEL_ITEMS_MAX {
        return "not expected here".to_owned();
    }
    format!("expected {}", or_list(&d.expected))
}

/// The line of `span` with secrets masked, and the byte where `span` starts in it.
fn line_of(file: &SourceFile, span: Span) -> (String, usize) {
    let offset = usize::try_from(span.offset)
        .unwrap_or(0)
        .min(file.text.len());
    let begin = file.text[..offset]
        .iter()
        .rposition(|&b| b == b'\n')
        .map_or(0, |p| p + 1);
    let end = file.text[offset..]
        .iter()
        .position(|&b| b == b'\n')
        .map_or(file.text.len(), |p| offset + p);
    let before = String::from_utf8_lossy(&file.text[begin..offset]).into_owned();
    let after = String::from_utf8_lossy(&file.text[offset..end]).into_owned();
    let clean = |s: &str| s.replace(['\r', '\0'], " ");
    let (before, after) = (clean(&before), clean(&after));
    let start = before.len();
    (mask_secrets(&(before + &after)), start)
}

/// Bytes of the first `len` bytes' worth of characters, kept on a character boundary.
fn char_len(text: &str, len: u32) -> usize {
    let mut n = usize::try_from(len)
        .unwrap_or(1)
        .clamp(1, text.len().max(1))
        .min(text.len());
    while n < text.len() && !text.is_char_boundary(n) {
        n += 1;
    }
    n
}

/// Puts stars, byte for byte, over what follows `shared-secret` up to the `;`.
fn mask_secrets(line: &str) -> String {
    const WORD: &str = "shared-secret";
    let Some(at) = line.find(WORD) else {
        return line.to_owned();
    };
    let from = at + WORD.len();
    let mut quoted = false;
    let mut masked = line[..from].to_owned();
    let mut rest = line[from..].char_indices();
    for (i, c) in rest.by_ref() {
        if c == '"' {
            quoted = !quoted;
            masked.push(c);
        } else if c == ';' && !quoted {
            masked.push_str(&mask_secrets(&line[from + i..]));
            return masked;
        } else if c.is_whitespace() && !quoted {
            masked.push(c);
        } else {
            masked.push_str(&"*".repeat(c.len_utf8()));
        }
    }
    masked
}

/// The nearest of `names` to `word` by edit distance, if it is near enough to be meant.
#[must_use]
pub fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const WORD_MAX: usize = 64;
    if word.len() > WORD_MAX {
        return None;
    }
    // Half of a short word changed is another word.
    let limit = match word.len() {
        0..=4 => 1,
        long => long.div_ceil(3).min(3),
    };
    names
        .map(|name| (distance(word, name), name))
        .filter(|(d, _)| *d <= limit)
        .min()
        .map(|(_, name)| name)
}

/// Damerau-Levenshtein distance of neighbouring swaps, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1)
                .min(rows[i][j - 1] + 1)
                .min(rows[i - 1][j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_finds_its_neighbour() {
        let names = ["shared-secret", "timeout", "ping-int"];
        assert_eq!(
            nearest("shraed-secret", names.iter().copied()),
            Some("shared-secret")
        );
        assert_eq!(nearest("tiemout", names.iter().copied()), Some("timeout"));
        assert_eq!(nearest("florp", names.iter().copied()), None);
        assert_eq!(nearest("frob", ["proc"].into_iter()), None);
        assert_eq!(nearest("pro", ["proc"].into_iter()), Some("proc"));
    }

    #[test]
    fn secrets_are_masked_byte_for_byte() {
        assert_eq!(
            mask_secrets("net { shared-secret \"a b\"; timeout 3; }"),
            "net { shared-secret \"***\"; timeout 3; }"
        );
        assert_eq!(mask_secrets("shared-secret abc"), "shared-secret ***");
    }

    #[test]
    fn many_warnings_of_one_code_become_one_line() {
        let mut files = SourceMap::default();
        files.add("x", Vec::new());
        let w = Diagnostic::warning(Code::LegacySyncer, Span::default(), "old");
        assert_eq!(summarise_warnings(&files, &vec![w.clone(); 5]).len(), 5);
        let lines = summarise_warnings(&files, &vec![w; 6]);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("and 5 more"));
    }
}
