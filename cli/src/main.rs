//! `coracle`: Kubernetes for WebAssembly in one binary.

mod args;
mod client;
mod commands;
mod environment;
mod input;
mod join_token;
mod local_cluster;
mod names;
mod output;
mod project;
mod selection;
mod service_manager;

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;
use rustix::fs::Mode;

use crate::{
    args::{Cli, Command, LogArgs, LogFormat},
    client::Refused,
    commands::run::Ended,
    output::NobodyReads,
};

/// Guests and the control plane allocate much and briefly from many threads; mimalloc gains 5 to 10 % on requests.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    leave_huge_pages();
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
    if !matches!(cli.command, Command::Man(_)) {
        // What is in data dirs, backups and kubeconfigs is for nobody else, whoever writes it.
        rustix::process::umask(Mode::RWXG | Mode::RWXO);
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
        Err(error) if error.is::<Ended>() => {
            error.downcast_ref().map_or(ExitCode::FAILURE, |Ended(code)| (*code).into())
        }
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
        Command::New(args) => commands::new::run(&args),
        Command::Build(args) => commands::build::run(&args).await,
        Command::Dev(args) => commands::dev::run(&args).await,
        Command::Run(args) => commands::run::run(&args).await,
        Command::Push(args) => commands::push::run(&args).await,
        Command::Deploy(args) => commands::deploy::run(&args).await,
        Command::Invoke(args) => commands::invoke::run(&args).await,
        Command::Functions(args) => commands::functions::list_functions(&args).await,
        Command::Revisions(args) => commands::functions::list_revisions(&args).await,
        Command::Traffic(args) => commands::functions::traffic(&args).await,
        Command::Rollback(args) => commands::functions::rollback(&args).await,
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

/// Memory comes and goes in pages of the usual size: in huge ones a control node that holds 2 MiB of objects takes 30, and
/// what guests leave behind is seldom a whole one that can be given back.
fn leave_huge_pages() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        eprintln!("warning: more memory is taken than is needed: transparent huge pages stay on: {error}");
    }
}

/// Daemons log state changes, client commands only what goes wrong.
fn start_logging(cli: &Cli) {
    let client = LogArgs::default();
    let (default, asked) = match &cli.command {
        Command::Control(args) => ("info", &args.log),
        Command::Node(args) => ("info", &args.log),
        Command::Up(args) => ("warn", &args.log),
        Command::Demo(args) => ("error", &args.log),
        _ => ("error", &client),
    };
    let filter = asked.log.as_deref().or(cli.log.as_deref()).unwrap_or(default);
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|error| {
        eprintln!("warning: --log {filter}: {error}; logging `{default}` instead");
        tracing_subscriber::EnvFilter::new(default)
    });
    let logging = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match asked.log_format {
        LogFormat::Text => logging.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => logging.json().flatten_event(true).init(),
    }
}
