//! Bytes to tokens (spec section 1.2).

use crate::diagnostics::{Code, Diagnostic, Span};

/// Longest word, in characters.
pub(crate) const WORD_LEN_MAX: usize = 128;
/// Longest quoted string, in characters after the removal of backslashes.
pub(crate) const STRING_LEN_MAX: usize = 255;

/// What a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// `{ } ; [ ] :`
    Punctuation(char),
    /// An unquoted word.
    Word(String),
    /// A quoted string, without quotes and backslashes.
    Quoted(String),
    /// The end of the file.
    End,
}

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) span: Span,
}

impl Token {
    /// The token for messages.
    pub(crate) fn shown(&self) -> String {
        match &self.kind {
            TokenKind::Punctuation(c) => c.to_string(),
            TokenKind::Word(word) => word.clone(),
            TokenKind::Quoted(text) if text.is_empty() => "\"\"".to_owned(),
            TokenKind::Quoted(text) => text.clone(),
            TokenKind::End => "end of file".to_owned(),
        }
    }

    /// The text of a word or quoted string.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.kind {
            TokenKind::Word(text) | TokenKind::Quoted(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn is(&self, c: char) -> bool {
        self.kind == TokenKind::Punctuation(c)
    }

    pub(crate) fn is_end(&self) -> bool {
        self.kind == TokenKind::End
    }
}

/// Cuts one file into tokens.
#[derive(Debug, Clone)]
pub(crate) struct Lexer<'a> {
    bytes: &'a [u8],
    file: u32,
    at: usize,
    line: u32,
    column: u32,
}

fn is_word_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-')
}

fn is_ipv6_byte(b: u8) -> bool {
    is_word_byte(b) || matches!(b, b':' | b'%' | b'@')
}

impl<'a> Lexer<'a> {
    /// A lexer at the start of a file; files of 4 GiB and more are refused when they are read.
    pub(crate) fn new(bytes: &'a [u8], file: u32) -> Self {
        Self {
            bytes,
            file,
            at: 0,
            line: 1,
            column: 1,
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn bump(&mut self) {
        let Some(byte) = self.peek() else { return };
        self.at += 1;
        if byte == b'\n' {
            self.line += 1;
            self.column = 1;
        } else if self.peek().is_none_or(|next| next & 0xc0 != 0x80) {
            // Columns count characters: continuation bytes of UTF-8 do not move them.
            self.column += 1;
        }
    }

    /// A span that starts here and gets its length from [`Lexer::close`].
    fn open(&self) -> Span {
        let offset = u32::try_from(self.at).unwrap_or(u32::MAX);
        Span {
            file: self.file,
            line: self.line,
            column: self.column,
            offset,
            len: 0,
        }
    }

    fn close(&self, mut span: Span) -> Span {
        span.len = u32::try_from(self.at)
            .unwrap_or(u32::MAX)
            .saturating_sub(span.offset);
        span
    }

    fn skip_blanks(&mut self) {
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => self.bump(),
                b'#' => {
                    while self.peek().is_some_and(|b| b != b'\n') {
                        self.bump();
                    }
                }
                _ => return,
            }
        }
    }

    /// The next token. After an error the lexer stands behind what was wrong.
    pub(crate) fn next(&mut self) -> Result<Token, Box<Diagnostic>> {
        self.skip_blanks();
        let start = self.open();
        let Some(byte) = self.peek() else {
            return Ok(Token {
                kind: TokenKind::End,
                span: start,
            });
        };
        match byte {
            b'{' | b'}' | b';' | b'[' | b']' | b':' => {
                self.bump();
                let kind = TokenKind::Punctuation(char::from(byte));
                Ok(Token {
                    kind,
                    span: self.close(start),
                })
            }
            b'"' => self.quoted(start),
            b if is_word_byte(b) => self.word(start, is_word_byte),
            _ => {
                let from = self.at;
                self.bump();
                while self.peek().is_some_and(|b| b & 0xc0 == 0x80) {
                    self.bump();
                }
                let found = String::from_utf8_lossy(&self.bytes[from..self.at]).into_owned();
                let span = self.close(start);
                let expected = ["a word, a quoted string or one of { } ; [ ] :"];
                let error = Diagnostic::expected(Code::BadChar, span, expected, found);
                Err(Box::new(error.hinting(
                    "values with other characters are written in \"quotes\"",
                )))
            }
        }
    }

    /// An IPv6 address: only asked for right after `[`.
    pub(crate) fn ipv6(&mut self) -> Result<Token, Box<Diagnostic>> {
        self.skip_blanks();
        let start = self.open();
        match self.peek() {
            Some(byte) if is_ipv6_byte(byte) => self.word(start, is_ipv6_byte),
            _ => self.next(),
        }
    }

    fn word(&mut self, start: Span, belongs: fn(u8) -> bool) -> Result<Token, Box<Diagnostic>> {
        let from = self.at;
        while self.peek().is_some_and(belongs) {
            self.bump();
        }
        let span = self.close(start);
        if self.at - from > WORD_LEN_MAX {
            return Err(too_long(span, WORD_LEN_MAX));
        }
        let text = String::from_utf8_lossy(&self.bytes[from..self.at]).into_owned();
        Ok(Token {
            kind: TokenKind::Word(text),
            span,
        })
    }

    fn quoted(&mut self, start: Span) -> Result<Token, Box<Diagnostic>> {
        self.bump();
        let mut text = Vec::new();
        loop {
            match self.peek() {
                Some(b'"') => break self.bump(),
                Some(b'\\') if self.bytes.get(self.at + 1).is_some_and(|&b| b != b'\n') => {
                    self.bump();
                    text.extend(self.peek());
                    self.bump();
                }
                Some(b'\n') | None => {
                    let found = if self.peek().is_none() {
                        "end of file"
                    } else {
                        "end of line"
                    };
                    let code = Code::UnterminatedString;
                    let error =
                        Diagnostic::expected(code, self.close(start), ["closing \""], found);
                    return Err(Box::new(
                        error.hinting("a string stands on one line, between two quotes"),
                    ));
                }
                Some(byte) => {
                    text.push(byte);
                    self.bump();
                }
            }
        }
        let span = self.close(start);
        let Ok(text) = String::from_utf8(text) else {
            let error = Diagnostic::expected(Code::BadChar, span, ["text in UTF-8"], "other bytes");
            return Err(Box::new(
                error.hinting("convert the file with: iconv -f latin1 -t utf8"),
            ));
        };
        if text.chars().count() > STRING_LEN_MAX {
            return Err(too_long(span, STRING_LEN_MAX));
        }
        Ok(Token {
            kind: TokenKind::Quoted(text),
            span,
        })
    }
}

fn too_long(span: Span, max: usize) -> Box<Diagnostic> {
    let expected = [format!("at most {max} characters")];
    Box::new(Diagnostic::expected(
        Code::StringTooLong,
        span,
        expected,
        "longer string",
    ))
}

/// Whether `text` may be written without quotes.
pub(crate) fn is_plain_word(text: &str) -> bool {
    !text.is_empty() && text.len() <= WORD_LEN_MAX && text.bytes().all(is_word_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<TokenKind> {
        let mut lexer = Lexer::new(text.as_bytes(), 0);
        let mut out = Vec::new();
        loop {
            let token = lexer.next().unwrap();
            if token.is_end() {
                return out;
            }
            out.push(token.kind);
        }
    }

    #[test]
    fn longest_match_wins_and_braces_need_no_blanks() {
        use TokenKind::{Punctuation as P, Word as W};
        assert_eq!(
            all("on alpha{device/dev/drbd0;}#x\n:"),
            [
                W("on".into()),
                W("alpha".into()),
                P('{'),
                W("device/dev/drbd0".into()),
                P(';'),
                P('}'),
                P(':')
            ]
        );
    }

    #[test]
    fn a_backslash_makes_the_next_character_literal() {
        assert_eq!(
            all(r#""a \"b\" \\ \n""#),
            [TokenKind::Quoted(r#"a "b" \ n"#.into())]
        );
    }

    #[test]
    fn columns_count_characters() {
        let mut lexer = Lexer::new("\"äö\" x".as_bytes(), 0);
        lexer.next().unwrap();
        assert_eq!(lexer.next().unwrap().span.column, 6);
    }
}
