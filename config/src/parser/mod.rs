//! Tokens to statements: recursive descent, one dialect for all eras (spec section 1.3).
//!
//! After an error reading goes on behind the next `;` or before the next `}`; see [`Parser::recover`]. Errors and
//! statements come out as [`Item`]s in reading order, so that the first error of a file is the first of the list.

mod connection;
mod host;
mod resource;
mod section;

use crate::ast::{DialectMarks, Item, Spanned};
use crate::diagnostics::{Code, Diagnostic, ERRORS_MAX, Span};
use crate::lexer::{Lexer, Token, TokenKind};

pub(crate) use section::quote;

/// Parsing fails with one diagnostic; boxed, since success is what is common.
pub(crate) type Parsed<T> = Result<T, Box<Diagnostic>>;

/// What may stand at top level.
const TOP: &[&str] = &["global", "common", "resource", "skip", "include"];

/// All that one file holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct ParsedFile {
    pub(crate) items: Vec<Item>,
    pub(crate) warnings: Vec<Diagnostic>,
    pub(crate) marks: DialectMarks,
}

/// Reads one file; never fails, never panics: errors are items.
pub(crate) fn parse(bytes: &[u8], file: u32) -> ParsedFile {
    let mut parser = Parser::new(bytes, file);
    parser.top_level();
    parser.out
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    peeked: Option<Token>,
    out: ParsedFile,
    errors: usize,
    end_reported: bool,
}

/// Statements that may stand once in their parent.
#[derive(Default)]
struct Once {
    seen: Vec<(&'static str, Span)>,
}

impl<'a> Parser<'a> {
    fn new(bytes: &'a [u8], file: u32) -> Self {
        Self {
            lexer: Lexer::new(bytes, file),
            peeked: None,
            out: ParsedFile::default(),
            errors: 0,
            end_reported: false,
        }
    }

    fn top_level(&mut self) {
        let mut global: Option<Span> = None;
        while self.errors < ERRORS_MAX {
            match self.peek() {
                Ok(token) if token.is_end() => return,
                Ok(_) => {}
                Err(error) => {
                    self.report(*error);
                    self.recover_at_top();
                    continue;
                }
            }
            if let Err(error) = self.top_statement(&mut global) {
                self.report(*error);
                self.recover_at_top();
            }
        }
    }

    fn top_statement(&mut self, global: &mut Option<Span>) -> Parsed<()> {
        let token = self.next()?;
        let TokenKind::Word(word) = &token.kind else {
            return Err(unexpected(&token, TOP));
        };
        match word.as_str() {
            "global" => {
                let options = self.global_body(&token)?;
                global.get_or_insert(token.span);
                self.out.items.push(Item::Global {
                    at: token.span,
                    options,
                });
            }
            "common" => {
                let sections = self.common_body()?;
                self.out.items.push(Item::Common {
                    at: token.span,
                    sections,
                });
            }
            "resource" => {
                let resource = self.resource(token.span)?;
                self.out.items.push(Item::Resource(Box::new(resource)));
            }
            "include" => {
                let file = self.value("file name")?;
                self.expect(';')?;
                self.out.items.push(Item::Include(file));
            }
            "skip" => self.skip(token.span)?,
            word if word.starts_with("require-drbd-module-version-") => {
                self.out.marks.v9 = true;
                self.value("version")?;
                self.expect(';')?;
            }
            _ => return Err(unexpected(&token, TOP)),
        }
        Ok(())
    }

    // ---- tokens ----

    fn peek(&mut self) -> Parsed<&Token> {
        let token = match self.peeked.take() {
            Some(token) => token,
            None => self.lexer.next()?,
        };
        Ok(self.peeked.insert(token))
    }

    fn next(&mut self) -> Parsed<Token> {
        match self.peeked.take() {
            Some(token) => Ok(token),
            None => self.lexer.next(),
        }
    }

    /// The next token if it is this punctuation.
    fn accept(&mut self, c: char) -> Parsed<bool> {
        let found = self.peek()?.is(c);
        if found {
            self.peeked = None;
        }
        Ok(found)
    }

    fn at(&mut self, c: char) -> Parsed<bool> {
        Ok(self.peek()?.is(c))
    }

    fn expect(&mut self, c: char) -> Parsed<Token> {
        let token = self.next()?;
        if token.is(c) {
            Ok(token)
        } else {
            Err(self.refuse(token, &[&c.to_string()]))
        }
    }

    /// A word or string that is not empty; `what` names it in messages.
    fn name(&mut self, what: &str) -> Parsed<Spanned<String>> {
        let token = self.next()?;
        match token.text() {
            Some(text) if !text.is_empty() => Ok(Spanned {
                value: text.to_owned(),
                at: token.span,
            }),
            _ => Err(self.refuse(token, &[what])),
        }
    }

    /// A word or string, also an empty one.
    fn value(&mut self, what: &str) -> Parsed<Spanned<String>> {
        let token = self.next()?;
        match token.text() {
            Some(text) => Ok(Spanned {
                value: text.to_owned(),
                at: token.span,
            }),
            None => Err(self.refuse(token, &[what])),
        }
    }

    /// A plain integer in a range; out of range is reported and clamped, so that reading goes on.
    fn integer(&mut self, what: &str, min: u64, max: u64) -> Parsed<Spanned<u64>> {
        let token = self.next()?;
        let digits = match token.text() {
            Some(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => text,
            _ => return Err(self.refuse(token, &[what])),
        };
        let value = digits.parse::<u64>().unwrap_or(u64::MAX);
        if value < min || value > max {
            let expected = [format!("{min}..{max}")];
            self.report(Diagnostic::expected(
                Code::Range,
                token.span,
                expected,
                digits,
            ));
        }
        Ok(Spanned {
            value: value.clamp(min, max),
            at: token.span,
        })
    }

    /// Puts back what could not be used, so that recovery sees it, and says what was expected.
    fn refuse(&mut self, token: Token, expected: &[&str]) -> Box<Diagnostic> {
        let error = unexpected(&token, expected);
        self.peeked = Some(token);
        error
    }

    // ---- blocks ----

    /// Reads `{ statement... }`; `expected` is what may stand in it, for messages.
    fn block(
        &mut self,
        expected: &[&str],
        mut statement: impl FnMut(&mut Self, &Token) -> Parsed<()>,
    ) -> Parsed<()> {
        self.expect('{')?;
        while self.errors < ERRORS_MAX {
            let token = match self.next() {
                Ok(token) => token,
                Err(error) => {
                    self.report(*error);
                    self.recover();
                    continue;
                }
            };
            if token.is('}') {
                return Ok(());
            }
            if token.is_end() {
                if !self.end_reported {
                    let expected: Vec<&str> = expected.iter().copied().chain(["}"]).collect();
                    let error = unexpected(&token, &expected);
                    self.report(error.hinting("the file may be cut short: a } is missing"));
                    self.end_reported = true;
                }
                self.peeked = Some(token);
                return Ok(());
            }
            if token.is(';') || token.is('{') {
                let expected: Vec<&str> = expected.iter().copied().chain(["}"]).collect();
                let error = unexpected(&token, &expected);
                self.report(*error);
                self.peeked = Some(token);
                self.recover();
                continue;
            }
            if let Err(error) = statement(self, &token) {
                self.report(*error);
                self.recover();
            }
        }
        Ok(())
    }

    /// Skips to behind the next `;` or block, or to before the next `}` or the end.
    fn recover(&mut self) {
        let mut depth = 0usize;
        loop {
            match self.next() {
                Err(_) => {}
                Ok(token) if token.is_end() => {
                    self.peeked = Some(token);
                    return;
                }
                Ok(token) if token.is('{') => depth += 1,
                Ok(token) if token.is('}') => {
                    if depth == 0 {
                        self.peeked = Some(token);
                        return;
                    }
                    depth -= 1;
                    if depth == 0 {
                        return;
                    }
                }
                Ok(token) if token.is(';') && depth == 0 => return,
                Ok(_) => {}
            }
        }
    }

    /// As [`Parser::recover`]; at top level a `}` belongs to nobody and is passed over.
    fn recover_at_top(&mut self) {
        self.recover();
        if self.peeked.as_ref().is_some_and(|t| t.is('}')) {
            self.peeked = None;
        }
    }

    /// Reads past `skip ... { ... }`; the word itself is gone already.
    fn skip(&mut self, at: Span) -> Parsed<()> {
        let mut depth = 0usize;
        loop {
            let token = self.next()?;
            if token.is_end() {
                self.end_reported = true;
                let error = unexpected(
                    &token,
                    &[&format!("}} closing the skip at line {}", at.line)],
                );
                self.peeked = Some(token);
                return Err(error);
            }
            if token.is('{') {
                depth += 1;
            } else if token.is('}') {
                if depth <= 1 {
                    return if depth == 1 {
                        Ok(())
                    } else {
                        Err(self.refuse(token, &["{"]))
                    };
                }
                depth -= 1;
            }
        }
    }

    // ---- reports ----

    fn report(&mut self, error: Diagnostic) {
        self.errors += 1;
        if self.errors <= ERRORS_MAX {
            self.out.items.push(Item::Error(error));
        }
    }

    fn warn(&mut self, code: Code, at: Span, message: impl Into<String>) {
        self.out
            .warnings
            .push(Diagnostic::warning(code, at, message));
    }

    /// Reports a statement that stands twice; the second one is read all the same.
    fn once(&mut self, once: &mut Once, name: &'static str, token: &Token) {
        match once.seen.iter().find(|(seen, _)| *seen == name) {
            Some(&(_, first)) => {
                let expected = [format!("at most one {name}")];
                let error =
                    Diagnostic::expected(Code::Duplicate, token.span, expected, token.shown());
                self.report(error.relating(first).hinting("merge the two or remove one"));
            }
            None => once.seen.push((name, token.span)),
        }
    }
}

/// `token` where one of `expected` should be.
fn unexpected(token: &Token, expected: &[&str]) -> Box<Diagnostic> {
    let code = if token.is_end() {
        Code::UnexpectedEof
    } else {
        Code::UnexpectedToken
    };
    let mut error = Diagnostic::expected(code, token.span, expected.iter().copied(), token.shown());
    if let TokenKind::Word(word) = &token.kind
        && let Some(name) = crate::diagnostics::nearest(word, expected.iter().copied())
    {
        error = error.hinting(format!("did you mean {name}?"));
    }
    Box::new(error)
}
