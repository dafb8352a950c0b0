//! Reading the named files: includes, globs, templates. The only place with I/O.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::ast::{DialectMarks, Item, RawResource, Spanned};
use crate::diagnostics::{Code, Diagnostic, ERRORS_MAX, Report, SourceMap, Span};
use crate::model::{Config, Options, Sections, Template};
use crate::{evaluate, parser};

/// Largest file, in bytes: a configuration is kilobytes; more is a wrong path such as a disk.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Files of one configuration; a glob over a wrong directory ends here.
const FILES_MAX: usize = 4096;
/// Includes within includes.
const INCLUDE_DEPTH_MAX: usize = 64;

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The top file cannot be read (exit code 20 of `drbdadm`).
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration is refused (exit code 10 of `drbdadm`).
    #[error("{0}")]
    Invalid(Box<Report>),
}

/// Where files come from: the file system, or memory in tests.
pub trait Files {
    /// The bytes of a file, or why not. Directories are an error.
    ///
    /// # Errors
    /// As the file system says.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// The real path, for recognising a file under two names.
    ///
    /// # Errors
    /// As the file system says.
    fn canonical(&self, path: &Path) -> io::Result<PathBuf>;
    /// The names in a directory, in any order.
    ///
    /// # Errors
    /// As the file system says.
    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>>;
}

/// The file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFiles;

impl Files for RealFiles {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = std::fs::File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::IsADirectory,
                "it is a directory",
            ));
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        std::fs::canonicalize(path)
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let directory = if directory.as_os_str().is_empty() {
            Path::new(".")
        } else {
            directory
        };
        std::fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    }
}

/// No files at all: every include is an error.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFiles;

impl Files for NoFiles {
    fn read(&self, _: &Path) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn canonical(&self, _: &Path) -> io::Result<PathBuf> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn names(&self, _: &Path) -> io::Result<Vec<OsString>> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Reads a configuration file and what it includes.
///
/// # Errors
/// [`LoadError`]: the file cannot be read, or the configuration is refused.
pub fn load(path: &Path) -> Result<Config, LoadError> {
    load_from(&RealFiles, &[path])
}

/// Reads several files as one configuration: the usual one and that of `-t`.
///
/// # Errors
/// As [`load`].
pub fn load_all(paths: &[&Path]) -> Result<Config, LoadError> {
    load_from(&RealFiles, paths)
}

/// As [`load_all`], with files from anywhere.
///
/// # Errors
/// As [`load`].
pub fn load_from(files: &dyn Files, paths: &[&Path]) -> Result<Config, LoadError> {
    let mut loader = Loader::new(files);
    for path in paths {
        let unreadable = |source| LoadError::Unreadable {
            path: path.to_path_buf(),
            source,
        };
        let bytes = read_bounded(files, path).map_err(unreadable)?;
        if let Ok(real) = files.canonical(path)
            && !loader.seen.insert(real)
        {
            continue;
        }
        loader.file(&path.to_string_lossy(), path, bytes, 0);
    }
    loader.finish()
}

/// Reads a configuration from memory, for example standard input (name `STDIN`). Includes are relative to
/// `directory`.
///
/// # Errors
/// [`LoadError::Invalid`].
pub fn load_text(name: &str, text: &[u8], directory: &Path) -> Result<Config, LoadError> {
    load_text_from(&RealFiles, name, text, directory)
}

/// As [`load_text`], with included files from anywhere.
///
/// # Errors
/// [`LoadError::Invalid`].
pub fn load_text_from(
    files: &dyn Files,
    name: &str,
    text: &[u8],
    directory: &Path,
) -> Result<Config, LoadError> {
    let mut loader = Loader::new(files);
    loader.file(name, &directory.join("STDIN"), text.to_vec(), 0);
    loader.finish()
}

fn read_bounded(files: &dyn Files, path: &Path) -> io::Result<Vec<u8>> {
    let bytes = files.read(path)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is larger than 16 MiB",
        ));
    }
    Ok(bytes)
}

/// Everything read, before checks across statements.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) sources: SourceMap,
    pub(crate) global: Option<(Span, Options)>,
    pub(crate) common: Option<(Span, Sections)>,
    pub(crate) resources: Vec<(RawResource, Option<Template>)>,
    pub(crate) marks: DialectMarks,
    pub(crate) warnings: Vec<Diagnostic>,
    pub(crate) errors: Vec<Diagnostic>,
}

struct Loader<'a> {
    files: &'a dyn Files,
    seen: BTreeSet<PathBuf>,
    out: Loaded,
}

impl<'a> Loader<'a> {
    fn new(files: &'a dyn Files) -> Self {
        Self {
            files,
            seen: BTreeSet::new(),
            out: Loaded::default(),
        }
    }

    fn finish(self) -> Result<Config, LoadError> {
        let mut out = self.out;
        if out.errors.is_empty() {
            return evaluate::build(out).map_err(|report| LoadError::Invalid(Box::new(report)));
        }
        out.errors.truncate(ERRORS_MAX);
        let report = Report {
            files: out.sources,
            errors: out.errors,
            warnings: out.warnings,
        };
        Err(LoadError::Invalid(Box::new(report)))
    }

    /// Parses one file and follows its includes, in reading order.
    fn file(&mut self, name: &str, path: &Path, bytes: Vec<u8>, depth: usize) {
        let parsed = {
            let index = self.out.sources.add(name, bytes);
            let text = self
                .out
                .sources
                .get(index)
                .map_or(&[][..], |f| f.text.as_slice());
            parser::parse(text, index)
        };
        self.out.marks.v07 |= parsed.marks.v07;
        self.out.marks.v9 |= parsed.marks.v9;
        self.out.warnings.extend(parsed.warnings);
        let directory = path.parent().unwrap_or(Path::new("")).to_path_buf();
        for item in parsed.items {
            if self.out.errors.len() >= ERRORS_MAX {
                return;
            }
            match item {
                Item::Error(error) => self.out.errors.push(error),
                Item::Include(pattern) => self.include(&directory, &pattern, depth),
                Item::Global { at, options } => self.global(at, options),
                Item::Common { at, sections } => {
                    match &self.out.common {
                        Some((first, _)) => {
                            let error = twice(at, *first, "at most one common", "common");
                            self.out.errors.push(error.hinting(
                                "merge the two: a second common is not added to the first",
                            ));
                        }
                        None => self.out.common = Some((at, sections)),
                    }
                }
                Item::Resource(resource) => self.resource(*resource, &directory),
            }
        }
    }

    fn global(&mut self, at: Span, options: Options) {
        if let Some((first, _)) = &self.out.global {
            let error = twice(at, *first, "at most one global", "global");
            self.out.errors.push(error);
            return;
        }
        if !self.out.resources.is_empty() {
            let message = "global should come before the first resource";
            self.out
                .warnings
                .push(Diagnostic::warning(Code::GlobalOrder, at, message));
        }
        self.out.global = Some((at, options));
    }

    fn resource(&mut self, resource: RawResource, directory: &Path) {
        let first = self
            .out
            .resources
            .iter()
            .find(|(r, _)| r.name.value == resource.name.value);
        if let Some((first, _)) = first {
            let name = &resource.name;
            let error = twice(name.at, first.name.at, "unique resource name", &name.value);
            self.out.errors.push(error);
        }
        let template = resource
            .template
            .clone()
            .and_then(|file| self.template(&file, directory));
        self.out.resources.push((resource, template));
    }

    /// The `common` of a template file.
    fn template(&mut self, file: &Spanned<String>, directory: &Path) -> Option<Template> {
        let path = directory.join(&file.value);
        let bytes = match read_bounded(self.files, &path) {
            Ok(bytes) => bytes,
            Err(source) => {
                self.out.errors.push(unreadable(file, &source));
                return None;
            }
        };
        let index = self.out.sources.add(path.to_string_lossy(), bytes);
        let text = self
            .out
            .sources
            .get(index)
            .map_or(&[][..], |f| f.text.as_slice());
        let parsed = parser::parse(text, index);
        self.out.warnings.extend(parsed.warnings);
        let mut common = None;
        for item in parsed.items {
            match item {
                Item::Error(error) => self.out.errors.push(error),
                Item::Common { sections, .. } => common = Some(sections),
                _ => {}
            }
        }
        if common.is_none() {
            let expected = ["a file with a common section"];
            self.out.errors.push(Diagnostic::expected(
                Code::Include,
                file.at,
                expected,
                &file.value,
            ));
        }
        Some(Template {
            file: file.value.clone(),
            common: common?,
        })
    }

    fn include(&mut self, directory: &Path, pattern: &Spanned<String>, depth: usize) {
        if depth >= INCLUDE_DEPTH_MAX || self.out.sources.files().len() >= FILES_MAX {
            let message = format!(
                "too many includes: at most {INCLUDE_DEPTH_MAX} deep and {FILES_MAX} files"
            );
            let error = Diagnostic::expected(Code::Include, pattern.at, [""; 0], &pattern.value);
            self.out.errors.push(error.saying(message));
            return;
        }
        let is_glob = pattern.value.contains(['*', '?', '[']);
        let paths = if is_glob {
            glob(self.files, directory, &pattern.value)
        } else {
            vec![directory.join(&pattern.value)]
        };
        for path in paths {
            if let Ok(real) = self.files.canonical(&path)
                && !self.seen.insert(real)
            {
                continue;
            }
            match read_bounded(self.files, &path) {
                Ok(bytes) => self.file(&path.to_string_lossy(), &path, bytes, depth + 1),
                // A directory that a pattern happens to match is no configuration file.
                Err(source) if is_glob && source.kind() == io::ErrorKind::IsADirectory => {}
                Err(source) => self.out.errors.push(unreadable(pattern, &source)),
            }
        }
    }
}

fn twice(at: Span, first: Span, expected: &str, found: &str) -> Diagnostic {
    Diagnostic::expected(Code::Duplicate, at, [expected], found).relating(first)
}

fn unreadable(name: &Spanned<String>, source: &io::Error) -> Diagnostic {
    Diagnostic::expected(Code::Include, name.at, ["readable file"], &name.value).hinting(format!(
        "{source}; names are relative to the file that includes them"
    ))
}

/// The paths that a shell-style pattern matches, sorted.
fn glob(files: &dyn Files, directory: &Path, pattern: &str) -> Vec<PathBuf> {
    let (mut found, parts) = match pattern.strip_prefix('/') {
        Some(rest) => (vec![PathBuf::from("/")], rest),
        None => (vec![directory.to_path_buf()], pattern),
    };
    let parts: Vec<&str> = parts.split('/').filter(|p| !p.is_empty()).collect();
    for part in parts {
        let mut next = Vec::new();
        for base in found {
            if !part.contains(['*', '?', '[']) {
                next.push(base.join(part));
                continue;
            }
            for name in files.names(&base).unwrap_or_default() {
                let Some(text) = name.to_str() else { continue };
                if (part.starts_with('.') || !text.starts_with('.'))
                    && matches(part.as_bytes(), text.as_bytes())
                {
                    next.push(base.join(text));
                }
            }
            if next.len() > FILES_MAX {
                break;
            }
        }
        next.sort();
        next.dedup();
        next.truncate(FILES_MAX);
        found = next;
    }
    // A plain last part after a pattern may not exist in every directory.
    found.retain(|path| files.canonical(path).is_ok());
    found
}

/// Whether `name` matches a pattern of `*`, `?` and `[...]`; quadratic at worst.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, n));
            p += 1;
            continue;
        }
        if let Some(next) = match_one(pattern, p, name[n]) {
            p = next;
            n += 1;
        } else if let Some((after, from)) = star {
            p = after;
            n = from + 1;
            star = Some((after, n));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

/// The pattern position behind one matched byte.
fn match_one(pattern: &[u8], p: usize, byte: u8) -> Option<usize> {
    match *pattern.get(p)? {
        b'?' => Some(p + 1),
        b'[' => {
            let negated = matches!(pattern.get(p + 1), Some(b'!' | b'^'));
            let from = p + 1 + usize::from(negated);
            // A `]` right after the opening is an ordinary character.
            let Some(end) = pattern
                .get(from + 1..)
                .and_then(|t| t.iter().position(|&b| b == b']'))
            else {
                return (byte == b'[').then_some(p + 1);
            };
            let set = &pattern[from..from + 1 + end];
            let mut inside = false;
            let mut i = 0;
            while i < set.len() {
                if i + 2 < set.len() && set[i + 1] == b'-' {
                    inside |= (set[i]..=set[i + 2]).contains(&byte);
                    i += 3;
                } else {
                    inside |= set[i] == byte;
                    i += 1;
                }
            }
            (inside != negated).then_some(from + 1 + end + 1)
        }
        literal => (literal == byte).then_some(p + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn shell_patterns_match_as_in_a_shell() {
        let yes = [
            ("*.res", "a.res"),
            ("*", ""),
            ("a?c", "abc"),
            ("[a-c]x", "bx"),
            ("[!a]x", "bx"),
            ("a*b*c", "aXbYbc"),
            ("[]]", "]"),
            ("[", "["),
        ];
        for (pattern, name) in yes {
            assert!(
                matches(pattern.as_bytes(), name.as_bytes()),
                "{pattern} {name}"
            );
        }
        let no = [
            ("*.res", "a.re"),
            ("a?c", "ac"),
            ("[a-c]x", "dx"),
            ("[!a]x", "ax"),
            ("", "a"),
        ];
        for (pattern, name) in no {
            assert!(
                !matches(pattern.as_bytes(), name.as_bytes()),
                "{pattern} {name}"
            );
        }
    }
}
