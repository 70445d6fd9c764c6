//! What client commands print: text that a terminal only shows, aligned columns, and JSON and YAML for programs.
//!
//! What a cluster answers others have written: a name, a message or a cell must not move the cursor, change colours or
//! rewrite what stands above it.

use std::{
    borrow::Cow,
    fmt,
    io::{ErrorKind, Write},
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::args::Format;

/// Whoever reads the output has seen enough (`| head`): no fault.
#[derive(Debug)]
pub struct NobodyReads;

impl fmt::Display for NobodyReads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output any more")
    }
}

impl std::error::Error for NobodyReads {}

/// Writes to stdout, as it is.
pub fn bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(NobodyReads.into()),
        written => written.context("writing to stdout"),
    }
}

/// Prints lines of text, without anything that a terminal obeys.
pub fn text(text: &str) -> Result<()> {
    bytes(plain(text).as_bytes())
}

/// Prints one line.
pub fn line(line: impl fmt::Display) -> Result<()> {
    text(&format!("{line}\n"))
}

/// One line for the person, beside the output.
pub fn note(note: impl fmt::Display) {
    // Where nobody reads it there is nobody to be told so.
    let _ = writeln!(std::io::stderr(), "{}", plain(&note.to_string()));
}

/// As programs want it.
pub fn value(value: &Value, format: Format) -> Result<()> {
    match format {
        Format::Json => bytes(format!("{}\n", json(value)?).as_bytes()),
        Format::Yaml => bytes(serde_yaml_ng::to_string(value)?.as_bytes()),
    }
}

/// JSON in which no control character stands as it is: some terminals obey those behind ASCII too.
fn json(value: &Value) -> Result<String> {
    let text = serde_json::to_string_pretty(value)?;
    let is_unsafe = |c: char| c != '\n' && is_obeyed(c);
    if !text.contains(is_unsafe) {
        return Ok(text);
    }
    // Such a character can only be part of a string, where JSON has an escape for it.
    Ok(text.chars().fold(String::with_capacity(text.len()), |mut text, c| {
        match is_unsafe(c) {
            true => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => text.push(c),
        }
        text
    }))
}

/// The text with what a terminal would obey in caret notation (`^[`), but for ends of lines and tabs.
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(|c: char| is_obeyed(c) && c != '\n' && c != '\t') {
        return text.into();
    }
    let mut plain = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' | '\t' => plain.push(c),
            '\x7f' => plain.push_str("^?"),
            '\0'..='\x1f' => plain.extend(['^', char::from(c as u8 + b'@')]),
            c if is_obeyed(c) => plain.extend(c.escape_unicode()),
            c => plain.push(c),
        }
    }
    plain.into()
}

/// Controls of ASCII and of ISO 6429 behind it, and what turns the direction of the text around.
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// One cell of a table: its first line.
pub fn cell(text: &str) -> String {
    let mut lines = text.trim_end_matches(['\n', '\r']).split(['\n', '\r']);
    let first = lines.next().unwrap_or_default();
    let first = plain(first).replace('\t', " ");
    if lines.next().is_some() { format!("{first}...") } else { first }
}

/// Rows of text with their columns aligned, three spaces apart.
pub fn align(lines: &[Vec<String>]) -> String {
    Widths::default().render(lines)
}

/// The same of rows that come one after the other: columns stay as wide as they have been.
#[derive(Default)]
pub struct Widths(Vec<usize>);

impl Widths {
    pub fn render(&mut self, lines: &[Vec<String>]) -> String {
        let cells = |line: &Vec<String>| line.iter().map(|text| cell(text)).collect();
        let lines: Vec<Vec<String>> = lines.iter().map(cells).collect();
        for line in &lines {
            self.0.resize(self.0.len().max(line.len()), 0);
            for (width, cell) in self.0.iter_mut().zip(line) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut text = String::new();
        for line in &lines {
            let row: Vec<String> =
                line.iter().zip(&self.0).map(|(cell, width)| format!("{cell:<width$}")).collect();
            text.push_str(row.join("   ").trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        assert_eq!(plain("good\tmorning\n"), "good\tmorning\n");
        assert_eq!(plain("\x1b[31mred\x1b]0;title\x07\r\x7f"), "^[[31mred^[]0;title^G^M^?");
        assert_eq!(plain("\u{9b}2J \u{202e}txt"), "\\u{9b}2J \\u{202e}txt");
        assert_eq!(cell("a\x1b[2J\nb"), "a^[[2J...");
        assert_eq!(cell("a\tb\n"), "a b");
        let lines = [vec!["A\x1b[1m".to_owned(), "B".to_owned()], vec!["x".to_owned(), "y\nz".to_owned()]];
        assert_eq!(align(&lines), "A^[[1m   B\nx        y...\n");
    }

    #[test]
    fn columns_stay_as_wide_as_they_were() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        let mut widths = Widths::default();
        assert_eq!(
            widths.render(&[row("NAME", "READY"), row("hello-0", "0/1")]),
            "NAME      READY\nhello-0   0/1\n"
        );
        assert_eq!(widths.render(&[row("a", "1/1")]), "a         1/1\n");
        assert_eq!(widths.render(&[row("longer-still", "1/1")]), "longer-still   1/1\n");
    }

    #[test]
    fn programs_get_the_same_text_escaped() {
        let value = json!({ "text": "\x1b[31m\u{9b}2J\u{7f}\u{202e}" });
        let json = json(&value).unwrap();
        assert!(!json.contains(|c: char| c != '\n' && is_obeyed(c)), "{json:?}");
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), value);
        // YAML escapes what is a control, and knows no escape for what is not.
        let value = json!({ "text": "\x1b[31m\u{9b}2J\u{7f}" });
        let yaml = serde_yaml_ng::to_string(&value).unwrap();
        assert!(!yaml.contains(|c: char| c != '\n' && is_obeyed(c)), "{yaml:?}");
        assert_eq!(serde_yaml_ng::from_str::<Value>(&yaml).unwrap(), value);
    }
}
