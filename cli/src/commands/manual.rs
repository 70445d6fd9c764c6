//! `coracle completions` and `coracle man`: what follows from the command line by itself.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::{
    args::{Cli, ManArgs},
    output,
};

/// Where shells look for completions, below a prefix's `share`.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/coracle"),
    (Shell::Zsh, "zsh/site-functions/_coracle"),
    (Shell::Fish, "fish/vendor_completions.d/coracle.fish"),
];

pub fn completions(shell: Shell) -> Result<()> {
    output::bytes(&script(shell))
}

fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "coracle", &mut script);
    script
}

pub fn run(args: &ManArgs) -> Result<()> {
    match &args.prefix {
        Some(prefix) => {
            let written = install(prefix)?;
            output::line(format!("{written} files written below {}", prefix.join("share").display()))
        }
        None => output::bytes(&page(find(&args.command)?)?),
    }
}

/// A command by its words, under the name of its page: `coracle-token-create`.
fn find(words: &[String]) -> Result<clap::Command> {
    let mut command = Cli::command();
    command.build();
    let mut name = "coracle".to_owned();
    for word in words {
        let Some(found) = command.find_subcommand(word).filter(|found| !found.is_hide_set()) else {
            bail!("there is no command `{} {word}`", name.replace('-', " "));
        };
        name = format!("{name}-{}", found.get_name());
        command = found.clone();
    }
    Ok(command.display_name(name))
}

fn name(command: &clap::Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

fn page(command: clap::Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .source(concat!("coracle ", env!("CARGO_PKG_VERSION")))
        .render(&mut page)
        .context("making the manual page")?;
    Ok(page)
}

/// Writes all pages and completions below `prefix`/share; how many files.
fn install(prefix: &Path) -> Result<usize> {
    let share = prefix.join("share");
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for words in all(&Cli::command(), &[]) {
        let command = find(&words)?;
        files.push((format!("man/man1/{}.1", name(&command)), page(command)?));
    }
    files.extend(COMPLETIONS.map(|(shell, file)| (file.to_owned(), script(shell))));
    for (file, text) in &files {
        let path = share.join(file);
        let folder = path.parent().unwrap_or(&share);
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(files.len())
}

/// The words of all commands.
fn all(command: &clap::Command, words: &[String]) -> Vec<Vec<String>> {
    let mut found = vec![words.to_vec()];
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        found.extend(all(sub, &[words, &[sub.get_name().to_owned()]].concat()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_its_completions() {
        let prefix = tempfile::tempdir().unwrap();
        let written = install(prefix.path()).unwrap();
        let read = |file: &str| std::fs::read_to_string(prefix.path().join("share").join(file)).unwrap();
        assert!(written > 30, "{written}");
        assert!(read("man/man1/coracle.1").contains(".TH"));
        let page = read("man/man1/coracle-token-create.1");
        assert!(page.contains("coracle token create") && page.contains("token\\-file"), "{page}");
        for (_, file) in COMPLETIONS {
            assert!(read(file).contains("coracle"), "{file}");
        }
        assert!(
            !prefix.path().join("share/man/man1/coracle-compile-component.1").exists(),
            "it is not for people"
        );
    }

    #[test]
    fn a_page_is_found_by_its_words() {
        let words = ["token".to_owned(), "create".to_owned()];
        assert_eq!(name(&find(&words).unwrap()), "coracle-token-create");
        let said = find(&["token".to_owned(), "made".to_owned()]).unwrap_err().to_string();
        assert_eq!(said, "there is no command `coracle token made`");
    }
}
