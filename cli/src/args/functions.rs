//! `coracle functions`, `revisions`, `traffic` and `rollback`.

use std::time::Duration;

use clap::Args;

use super::{Namespaced, Output, values};
use crate::names;

#[derive(Clone, Debug, Args)]
pub struct FunctionsArgs {
    /// Functions of every namespace.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// How to print.
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub output: Option<Output>,
    #[command(flatten)]
    pub namespaced: Namespaced,
}

#[derive(Clone, Debug, Args)]
pub struct RevisionsArgs {
    /// The function.
    #[arg(value_parser = names::given)]
    pub name: String,
    /// How to print.
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub output: Option<Output>,
    #[command(flatten)]
    pub namespaced: Namespaced,
}

#[derive(Clone, Debug, Args)]
pub struct TrafficArgs {
    /// The function.
    #[arg(value_parser = names::given)]
    pub name: String,
    /// A revision and how many percent of the requests it is to have; `latest` is the latest that serves. Without any, what is
    /// so now is shown.
    #[arg(value_name = "REVISION=PERCENT", value_parser = share)]
    pub shares: Vec<Share>,
    /// A revision with hosts of its own, `TAG-` before those of the function. Repeat for more; those that there were go.
    #[arg(long = "tag", value_name = "TAG=REVISION", value_parser = values::key_value)]
    pub tags: Vec<(String, String)>,
    /// How long to wait until it is so.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = values::wait)]
    pub timeout: Duration,
    #[command(flatten)]
    pub namespaced: Namespaced,
}

#[derive(Clone, Debug, Args)]
pub struct RollbackArgs {
    /// The function.
    #[arg(value_parser = names::given)]
    pub name: String,
    /// The revision; by default the one that served before the one that has the most requests.
    #[arg(long, value_name = "REVISION", value_parser = names::given)]
    pub to: Option<String>,
    /// How long to wait until it is so.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = values::wait)]
    pub timeout: Duration,
    #[command(flatten)]
    pub namespaced: Namespaced,
}

/// A part of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    pub revision: String,
    pub percent: u8,
}

fn share(text: &str) -> Result<Share, String> {
    let mend = || format!("`{text}` is no part of the requests: write REVISION=PERCENT, as hello-2=90");
    let (revision, percent) =
        text.split_once('=').filter(|(revision, _)| !revision.is_empty()).ok_or_else(mend)?;
    let percent =
        percent.trim_end_matches('%').parse().ok().filter(|percent| *percent <= 100).ok_or_else(mend)?;
    Ok(Share { revision: revision.to_owned(), percent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read() {
        assert_eq!(share("hello-2=90"), Ok(Share { revision: "hello-2".to_owned(), percent: 90 }));
        assert_eq!(share("latest=100%").unwrap().percent, 100);
        for wrong in ["hello", "=1", "a=101", "a=-1", "a=x"] {
            assert!(share(wrong).unwrap_err().contains("write REVISION=PERCENT"), "{wrong}");
        }
    }
}
