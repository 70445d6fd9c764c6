//! Regular expressions of definitions. They are RE2's, as Go has them; where the engine here reads a text otherwise, it is
//! given one that means the same.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use regex::Regex;

/// Bytes that a compiled pattern may take; nearly all take less than the first.
const SMALL_BYTES: usize = 32 << 10;
const BYTES_MAX: usize = 1 << 20;

/// What patterns cost of the schemas that one may have: of the small there may be 1,000, of others 33.
const SMALL_COST: usize = 50;
const LARGE_COST: usize = 1_500;

/// A pattern as its author wrote it, and what it comes to here.
#[derive(Debug)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Compiles a pattern. Definitions repeat the same ones: those in use are shared.
pub fn compile(pattern: &str) -> Result<Arc<Pattern>, regex::Error> {
    static IN_USE: Mutex<BTreeMap<String, Weak<Pattern>>> = Mutex::new(BTreeMap::new());
    let known = IN_USE.lock().unwrap_or_else(PoisonError::into_inner).get(pattern).and_then(Weak::upgrade);
    if let Some(known) = known {
        return Ok(known);
    }
    let compiled = Arc::new(Pattern { text: pattern.to_owned(), regex: within(pattern, BYTES_MAX)? });
    let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    in_use.retain(|_, used| used.strong_count() > 0);
    in_use.insert(pattern.to_owned(), Arc::downgrade(&compiled));
    Ok(compiled)
}

/// What a pattern costs, or why it is none.
pub fn cost(pattern: &str) -> Result<usize, regex::Error> {
    match within(pattern, SMALL_BYTES) {
        Ok(_) => Ok(SMALL_COST),
        Err(_) => compile(pattern).map(|_| LARGE_COST),
    }
}

fn within(pattern: &str, bytes: usize) -> Result<Regex, regex::Error> {
    regex::RegexBuilder::new(&translated(pattern)).size_limit(bytes).dfa_size_limit(bytes).build()
}

fn translated(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    // Within a class: how many characters of it have come.
    let mut class: Option<usize> = None;
    while let Some(char) = rest.chars().next() {
        let after = &rest[char.len_utf8()..];
        if let Some(quoted) = rest.strip_prefix("\\Q").filter(|_| class.is_none()) {
            let (text, after) = quoted.split_once("\\E").unwrap_or((quoted, ""));
            out.push_str(&regex::escape(text));
            rest = after;
            continue;
        }
        if char == '\\' {
            let escaped = after.chars().next().unwrap_or('\\');
            // RE2's are of ASCII.
            match (escaped, class.is_some()) {
                ('d', true) => out.push_str("0-9"),
                ('w', true) => out.push_str("0-9A-Za-z_"),
                ('s', true) => out.push_str("\\t\\n\\f\\r "),
                ('d', false) => out.push_str("[0-9]"),
                ('w', false) => out.push_str("[0-9A-Za-z_]"),
                ('s', false) => out.push_str("[\\t\\n\\f\\r ]"),
                ('D' | 'W' | 'S', _) => {
                    let inner = match escaped {
                        'D' => "0-9",
                        'W' => "0-9A-Za-z_",
                        _ => "\\t\\n\\f\\r ",
                    };
                    out.push_str(&format!("[^{inner}]"));
                }
                ('b' | 'B', false) => out.push_str(&format!("(?-u:\\{escaped})")),
                ('_', _) => out.push('_'),
                _ => {
                    out.push('\\');
                    out.push(escaped);
                }
            }
            rest = after.get(escaped.len_utf8()..).unwrap_or("");
            class = class.map(|count| count + 1);
            continue;
        }
        match (char, class) {
            ('[', None) => {
                out.push('[');
                class = Some(0);
                if let Some(after) = after.strip_prefix('^') {
                    out.push('^');
                    rest = after;
                    continue;
                }
            }
            // A bracket that comes first is one of the class.
            (']', Some(0)) => {
                out.push_str("\\]");
                class = Some(1);
            }
            (']', Some(_)) => {
                out.push(']');
                class = None;
            }
            ('[', Some(count)) if after.starts_with(':') => {
                let end = after.find(":]").map_or(after.len(), |at| at + 2);
                out.push('[');
                out.push_str(&after[..end]);
                class = Some(count + 1);
                rest = &after[end..];
                continue;
            }
            // What combines classes here is a character there.
            ('[' | '&' | '~', Some(count)) => {
                out.push('\\');
                out.push(char);
                class = Some(count + 1);
            }
            ('-', Some(count)) if after.starts_with('-') => {
                out.push_str("\\-");
                class = Some(count + 1);
            }
            ('{', None) if !after.starts_with(|char: char| char.is_ascii_digit()) => out.push_str("\\{"),
            (char, _) => {
                out.push(char);
                class = class.map(|count| count + 1);
            }
        }
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        for (pattern, text, fits) in [
            (r"^\d+$", "12", true),
            (r"^\d+$", "٣", false),
            (r"^\w{1,253}$", "abc_1", true),
            (r"^[\w.-]+$", "a.b-c", true),
            (r"^[^\s/]+$", "a/b", false),
            (r"^\Qa.b\E$", "a.b", true),
            (r"^\Qa.b\E$", "axb", false),
            (r"^[a&&b]+$", "a&", true),
            (r"^[[a]+$", "[a", true),
            (r"^[]a]+$", "]a", true),
            (r"^a{,5}$", "a{,5}", true),
            (r"^a{2,3}$", "aa", true),
            (r"^[[:word:]]$", "a", true),
            (r"^[^[:space:]]+$", "a b", false),
            (r"^a\/b\-c\_d$", "a/b-c_d", true),
            (r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", "a.b-c", true),
            (r"^\W$", "é", true),
        ] {
            assert_eq!(
                compile(pattern).unwrap().is_match(text),
                fits,
                "{pattern} {text}: {}",
                translated(pattern)
            );
        }
        assert!(compile("(?=a)").is_err() && compile("(").is_err());
        assert_eq!(cost("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$").unwrap(), SMALL_COST);
        assert_eq!(cost("^[^/]{1,1000}$").unwrap(), LARGE_COST);
        let first = compile("^shared$").unwrap();
        assert!(Arc::ptr_eq(&first, &compile("^shared$").unwrap()));
        assert_eq!(compile(r"^\S+$").unwrap().to_string(), r"^\S+$", "it is shown as it was written");
    }
}
