//! `coracle invoke`.

use std::time::Duration;

use clap::{ArgAction, Args};

use super::{Namespaced, OutputArgs, values};
use crate::names;

#[derive(Clone, Debug, Args)]
pub struct InvokeArgs {
    /// The name of what `coracle deploy` made, or of another Ingress.
    #[arg(value_parser = names::given)]
    pub name: String,
    /// The path, with what is asked behind `?`.
    #[arg(long, default_value = "/", value_parser = path)]
    pub path: String,
    /// What is sent: text, `@FILE`, or `@-` for stdin.
    #[arg(short, long, value_name = "TEXT|@FILE")]
    pub data: Option<String>,
    /// The method: GET, or POST where there is --data.
    #[arg(short = 'X', long, value_name = "METHOD", value_parser = method)]
    pub request: Option<http::Method>,
    /// A header, as `NAME: VALUE`. Repeat for more.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// Print the status and the headers of the answer too.
    #[arg(short, long)]
    pub include: bool,
    /// Say how long it took until the gateway was connected, until the answer began, and in all.
    #[arg(long)]
    pub timing: bool,
    /// How often it is called, one call after the other.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub times: u32,
    /// How long an answer may take.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = values::wait, action = ArgAction::Set)]
    pub timeout: Duration,
    #[command(flatten)]
    pub format: OutputArgs,
    #[command(flatten)]
    pub namespaced: Namespaced,
}

fn path(text: &str) -> Result<String, String> {
    let text = if text.starts_with('/') { text.to_owned() } else { format!("/{text}") };
    match text.parse::<http::uri::PathAndQuery>() {
        Ok(_) => Ok(text),
        Err(error) => Err(format!("`{text}` is no path: {error}; write what is not plain as %XX")),
    }
}

fn method(text: &str) -> Result<http::Method, String> {
    text.parse().map_err(|_| format!("`{text}` is no method of HTTP"))
}

fn header(text: &str) -> Result<(http::HeaderName, http::HeaderValue), String> {
    let (name, value) =
        text.split_once(':').ok_or_else(|| format!("`{text}` is no header: write NAME: VALUE"))?;
    let name = name.trim().parse().map_err(|_| format!("`{name}` is no name of a header"))?;
    let value = value.trim().parse().map_err(|_| format!("`{value}` is no value of a header"))?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_written_as_for_curl() {
        assert_eq!(path("a?b=c"), Ok("/a?b=c".into()));
        assert!(path("/a b").is_err());
        let (name, value) = header("X-Word:  a: b ").unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("x-word", "a: b"));
        for bad in ["x", ": y", "a b: c"] {
            assert!(header(bad).is_err(), "{bad:?}");
        }
        assert!(method("PATCH").is_ok() && method("a b").is_err());
    }
}
