//! Promises that every command of the line keeps.

use clap::CommandFactory;

use super::*;

fn walk(command: &clap::Command, path: &str, each: &mut impl FnMut(&clap::Command, &str)) {
    each(command, path);
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        walk(sub, &format!("{path} {}", sub.get_name()), each);
    }
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn every_help_has_examples_that_can_be_given() {
    let mut shown = 0;
    walk(&Cli::command(), "coracle", &mut |command, path| {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.starts_with("Examples:\n"), "{path} has no examples: {help}");
        let lines = help.lines().skip(1).map(str::trim).filter(|line| !line.starts_with('#'));
        for line in lines {
            assert!(line.starts_with("coracle "), "{path}: {line}");
            if let Err(error) = Cli::try_parse_from(line.split_whitespace()) {
                panic!("{line}: {error}");
            }
            shown += 1;
        }
    });
    assert!(shown > 60, "{shown}");
}

#[test]
fn options_are_there_only_where_they_mean_something() {
    let mut with_namespace = Vec::new();
    let mut with_log = Vec::new();
    walk(&Cli::command(), "coracle", &mut |command, path| {
        let has = |name: &str| command.get_arguments().any(|argument| argument.get_long() == Some(name));
        let name = path.trim_start_matches("coracle").trim().to_owned();
        with_namespace.extend(has("namespace").then(|| name.clone()));
        with_log.extend(has("log").then_some(name));
    });
    let of_functions = ["functions", "revisions", "traffic", "rollback"];
    let wanted = [&["deploy", "invoke"][..], &of_functions, &["get", "logs", "delete"]].concat();
    assert_eq!(with_namespace, wanted);
    assert_eq!(with_log, ["", "up", "demo", "control", "node"]);
    for line in [
        "coracle get pods --log info",
        "coracle token list -n a",
        "coracle push a b -n c",
        "coracle get pods -V",
    ] {
        assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
    }
}

#[test]
fn every_listing_is_there_for_programs_too() {
    for listing in [
        "token list",
        "cluster status",
        "cluster members",
        "cluster keys",
        "cluster ca",
        "snapshot inspect f",
        "doctor",
        "version",
        "get pods",
        "functions",
        "revisions hello",
        "invoke hello",
    ] {
        for format in ["json", "yaml"] {
            let line = format!("coracle {listing} -o {format}");
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }
}
