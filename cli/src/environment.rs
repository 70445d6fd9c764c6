//! A component's environment: from options and from files of `KEY=VALUE` lines.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result, bail};

use crate::input;

/// The largest file of variables that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The variables that are asked for, each once, in order of names. An option goes before a file, a later file before an
/// earlier.
pub fn variables(files: &[PathBuf], options: &[(String, String)]) -> Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for file in files {
        let text = input::text(file, FILE_BYTES_MAX)?;
        let lines = lines(&text, |key| std::env::var(key).ok());
        variables.extend(lines.with_context(|| format!("reading {}", file.display()))?);
    }
    variables.extend(options.iter().cloned());
    variables.keys().try_for_each(|key| ensure_name(key))?;
    Ok(variables)
}

/// `KEY=VALUE` a line; the value is all that follows. `KEY` alone is that of the shell, where it has one.
fn lines(text: &str, shell: impl Fn(&str) -> Option<String>) -> Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    for (at, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('=') {
            Some((key, value)) => {
                ensure_name(key).with_context(|| format!("line {}", at + 1))?;
                variables.push((key.to_owned(), value.to_owned()));
            }
            None => {
                let key = line.trim_end();
                ensure_name(key).with_context(|| format!("line {}", at + 1))?;
                variables.extend(shell(key).map(|value| (key.to_owned(), value)));
            }
        }
    }
    Ok(variables)
}

/// What Kubernetes takes as a variable's name.
pub fn ensure_name(key: &str) -> Result<()> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let begins = key.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    if !begins || !key.bytes().all(is_part) || key == "." || key.starts_with("..") {
        bail!(
            "{key:?} is no name of an environment variable: letters, digits, `_`, `.` and `-`, no digit first"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_a_variable_a_line() {
        let text = "# comment\n\nA=1\nB=a=b # no comment\n C= x \r\nHOME\nMISSING\n";
        let shell = |key: &str| (key == "HOME").then(|| "/home".to_owned());
        let pairs = lines(text, shell).unwrap();
        let pairs: Vec<(&str, &str)> =
            pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("A", "1"), ("B", "a=b # no comment"), ("C", " x "), ("HOME", "/home")]);
        for (bad, said) in
            [("=x", "line 1"), ("A=1\n1A=2", "line 2"), ("export A=1", "line 1"), ("A B", "line 1")]
        {
            assert_eq!(lines(bad, |_| None).unwrap_err().to_string(), said, "{bad}");
        }
    }
}
