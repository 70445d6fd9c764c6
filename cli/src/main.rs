//! `coracle`: Kubernetes for WebAssembly in one binary.

mod args;
mod client;
mod commands;
mod join_token;
mod local_cluster;
mod names;
mod output;
mod selection;

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;

use crate::{
    args::{Cli, Command},
    client::Refused,
    output::NobodyReads,
};

/// Guests and the control plane allocate much and briefly from many threads; mimalloc gains 5 to 10 % on requests.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Err(error) = coracle_wasi_host::disable_library_backtraces() {
        eprintln!("warning: backtraces of libraries stay on, and guests run slower: {error}");
    }
    let cli = Cli::parse();
    if let Command::CompileComponent { arguments } = &cli.command {
        return coracle_wasi_host::compile_child_main(arguments.iter().cloned());
    }
    if matches!(cli.command, Command::Control(_) | Command::Node(_)) {
        join_token::leave_command_line();
    }
    start_logging(&cli);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(cli));
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
            result
        }
        Err(error) => Err(anyhow::Error::new(error).context("starting the I/O runtime")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<NobodyReads>() => ExitCode::SUCCESS,
        Err(error) => {
            output::note(told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error as the user reads it: what a server refused in the words of kubectl.
fn told(error: &anyhow::Error) -> String {
    match error.root_cause().downcast_ref::<Refused>() {
        Some(refused) if error.chain().count() == 1 && !refused.reason.is_empty() => {
            let hint = if Refused::is_for_now(error) { "; see `coracle doctor`" } else { "" };
            format!("Error from server ({}): {refused}{hint}", refused.reason)
        }
        _ => format!("error: {error:#}"),
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Up(args) => commands::up::run(&args).await,
        Command::Demo(args) => commands::demo::run(&args).await,
        Command::Control(args) => commands::control::run(&args).await,
        Command::Node(args) => commands::node::run(&args).await,
        Command::Token(command) => commands::token::run(&command).await,
        Command::Cluster(command) => commands::cluster::run(&command).await,
        Command::Snapshot(command) => commands::snapshot::run(&command).await,
        Command::Recover(args) => commands::recover::run(&args),
        Command::Kubeconfig(args) => commands::kubeconfig::run(&args),
        Command::Push(args) => commands::push::run(&args).await,
        Command::Deploy(args) => commands::deploy::run(&args).await,
        Command::Get(args) => commands::get::run(&args).await,
        Command::Logs(args) => commands::logs::run(&args).await,
        Command::Delete(args) => commands::delete::run(&args).await,
        Command::Doctor(args) => commands::doctor::run(&args).await,
        Command::Version(args) => commands::version::run(&args).await,
        Command::Completions { shell } => commands::manual::completions(shell),
        Command::Man(args) => commands::manual::run(&args),
        Command::CompileComponent { .. } => unreachable!("handled before the runtime starts"),
    }
}

/// Daemons log state changes, client commands only what goes wrong.
fn start_logging(cli: &Cli) {
    let (default, asked) = match &cli.command {
        Command::Control(args) => ("info", &args.log.log),
        Command::Node(args) => ("info", &args.log.log),
        Command::Up(args) => ("warn", &args.log.log),
        Command::Demo(args) => ("error", &args.log.log),
        _ => ("error", &None),
    };
    let filter = asked.as_deref().or(cli.log.as_deref()).unwrap_or(default);
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|error| {
        eprintln!("warning: --log {filter}: {error}; logging `{default}` instead");
        tracing_subscriber::EnvFilter::new(default)
    });
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
}
