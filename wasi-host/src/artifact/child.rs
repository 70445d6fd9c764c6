//! The compiler's own process: what it takes from itself before it reads a byte, and what it does then.
//!
//! The component comes on standard input and its code goes to standard output, both files that the node opened: this
//! process needs no file system. Its verdict goes to standard error. The node believes the verdict, and loads the code
//! that comes with it: who takes this process over by a fault of the compiler can write any code, and so become the
//! node. What is taken from it here keeps it from everything on the way, and bounds what a component can cost.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use rustix::process::{Pid, Resource, Rlimit, Signal, setrlimit};
use wasmtime::Engine;

use super::check::{self, WASM_BYTES_MAX};
use super::inspect::{Kind, World};
use super::{PrepareError, confine, structures, verdict};
use crate::engine::{WasiVersion, compiling};

/// The hidden subcommand of the binary that compiles.
pub(super) const SUBCOMMAND: &str = "compile-component";

/// CPU time of one compile, over all threads. A 50 MB interpreter takes about 60 s.
pub(super) const CPU_SECONDS_MAX: u64 = 300;

/// Compiled code of one component.
pub(super) const CODE_BYTES_MAX: u64 = 1 << 30;

/// Address space beyond the memory that may be written: the program itself, and what allocators reserve.
const RESERVED_BYTES_MAX: u64 = 4 << 30;

/// Open files, of which three are needed.
const FILES_MAX: u64 = 16;

/// Threads that compile.
const THREADS_MAX: usize = 8;

/// It gives way to guests, and to the node.
const NICE: i32 = 10;

/// Where memory is scarce it goes first.
const OOM_SCORE: &str = "1000";

/// The body of the hidden subcommand `compile-component PARENT MEMORY`, given its arguments: the process id of the node,
/// and the bytes of memory that it may use. Compiles standard input to standard output; its verdict goes to standard
/// error.
pub fn compile_child_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let made = compile_child(arguments);
    // The parent made the pipe; where it is gone there is nobody to tell.
    let _ = std::io::stderr().write_all(verdict::to_text(&made).as_bytes());
    if made.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn compile_child(arguments: impl IntoIterator<Item = OsString>) -> Result<Kind, PrepareError> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let number = |at: usize| arguments.get(at)?.to_str()?.parse::<u64>().ok();
    let (Some(parent), Some(memory), 2) = (number(0), number(1), arguments.len()) else {
        return Err(given_up(format!("usage: {SUBCOMMAND} PARENT MEMORY <COMPONENT >CODE")));
    };
    let failed = |error: std::io::Error| given_up(format!("the compiler cannot begin: {error}"));
    end_with(parent).map_err(failed)?;
    limit(memory).map_err(failed)?;
    let input = File::from(std::io::stdin().as_fd().try_clone_to_owned().map_err(failed)?);
    let output = File::from(std::io::stdout().as_fd().try_clone_to_owned().map_err(failed)?);
    let engine = |version| compiling(version).map_err(|error| given_up(format!("{error:#}")));
    let engines = [engine(WasiVersion::P2)?, engine(WasiVersion::P3)?];
    confine::without_files();
    start_threads()?;
    confine::only_compute();
    compile(input, output, &engines)
}

/// Ends this process when the node ends, however that does.
fn end_with(parent: u64) -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = rustix::process::getppid().map(Pid::as_raw_nonzero);
    if now.is_none_or(|now| u64::from(now.get().unsigned_abs()) != parent) {
        return Err(std::io::Error::other("the node has ended"));
    }
    Ok(())
}

fn limit(memory: u64) -> std::io::Result<()> {
    // Both only say what is given up first: where they are not allowed it is given up like anything else.
    let _ = rustix::process::nice(NICE);
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    rustix::thread::set_no_new_privs(true)?;
    for (resource, most) in [
        (Resource::Core, 0),
        (Resource::Cpu, CPU_SECONDS_MAX),
        (Resource::Data, memory),
        (Resource::As, memory.saturating_add(RESERVED_BYTES_MAX)),
        (Resource::Fsize, CODE_BYTES_MAX),
        (Resource::Nofile, FILES_MAX),
    ] {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}

/// The threads that compiling uses: later there can be no more.
fn start_threads() -> Result<(), PrepareError> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.min(THREADS_MAX))
        .build_global()
        .map_err(|error| given_up(format!("the compiler's threads cannot be started: {error}")))
}

fn compile(input: File, mut output: File, engines: &[Engine; 2]) -> Result<Kind, PrepareError> {
    let mut wasm = Vec::new();
    let failed = |error: std::io::Error| given_up(format!("the component cannot be read: {error}"));
    input.take(WASM_BYTES_MAX).read_to_end(&mut wasm).map_err(failed)?;
    let (kind, code) = make(wasm, engines)?;
    let failed = |error: std::io::Error| given_up(format!("the compiled code cannot be written: {error}"));
    output.write_all(&code).map_err(failed)?;
    Ok(kind)
}

/// Makes native code of a file, once it was checked. `engines` are those of WASI 0.2 and 0.3.
pub(super) fn make(wasm: Vec<u8>, engines: &[Engine; 2]) -> Result<(Kind, Vec<u8>), PrepareError> {
    let kind = check::kind(&wasm)?;
    let [p2, p3] = engines;
    let engine = match kind.engine {
        WasiVersion::P2 => p2,
        WasiVersion::P3 => p3,
    };
    let code = match kind.world {
        World::P1 => engine.precompile_module(&wasm),
        World::P2 | World::P3 => engine.precompile_component(&wasm),
    };
    let code = code.map_err(|error| PrepareError::Compile { message: format!("{error:#}") })?;
    let loaded = kind.loaded.max(structures::of_code(&code)?);
    Ok((Kind { loaded, ..kind }, code))
}

fn given_up(message: String) -> PrepareError {
    PrepareError::GivenUp { message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_makes_code_or_says_what_is_wrong() {
        let engines =
            [WasiVersion::P2, WasiVersion::P3].map(|version| compiling(version).expect("an engine"));
        let module = wat::parse_str(r#"(module (memory (export "memory") 1) (func (export "_start")))"#);
        let (kind, code) = make(module.expect("valid"), &engines).expect("compiled");
        assert_eq!(Kind { structures: 0, loaded: 0, ..kind }.to_text(), "command p1 p2 0 0");
        assert!((1..64 << 10).contains(&kind.structures), "{}", kind.structures);
        assert!((1..2 << 20).contains(&kind.loaded), "{}", kind.loaded);
        assert!(Engine::detect_precompiled(&code).is_some());
        assert!(structures::of_code(&code).expect("small") < 32 * code.len() as u64, "the section is found");
        assert!(matches!(make(b"garbage".to_vec(), &engines), Err(PrepareError::NotWasm { .. })));
        for wrong in [vec![], vec!["1"], vec!["x", "1"], vec!["1", "2", "3"]] {
            let error = compile_child(wrong.into_iter().map(OsString::from)).expect_err("refused");
            assert!(error.to_string().contains("usage"), "{error}");
        }
    }

    #[test]
    fn what_is_written_out_as_it_is_compiled_counts() {
        let engines =
            [WasiVersion::P2, WasiVersion::P3].map(|version| compiling(version).expect("an engine"));
        // An instance of instances of functions, each named as often.
        let cubed = |side: usize| {
            let each = |line: &dyn Fn(usize) -> String| (0..side).map(line).collect::<String>();
            let functions = each(&|at| format!(r#"(export "f{at}" (func $f))"#));
            let instances = |of: &str| each(&|at| format!(r#"(export "i{at}" (instance ${of}))"#));
            format!(
                r#"(component
    (core module $m (func (export "run") (result i32) (i32.const 0)))
    (core instance $i (instantiate $m))
    (func $f (result (result)) (canon lift (core func $i "run")))
    (instance $x {functions}) (instance $y {}) (instance $z {})
    (instance $r (export "run" (func $f)))
    (export "wasi:cli/run@0.2.0" (instance $r))
    (export "z" (instance $z)))"#,
                instances("x"),
                instances("y")
            )
        };
        let made = |side: usize| make(wat::parse_str(cubed(side)).expect("valid"), &engines);
        let (kind, _) = made(12).expect("little");
        assert!(kind.loaded > 12 * 12 * 12 * 450, "{}", kind.loaded);
        // Functions take less than names, and a large program has many.
        let functions =
            "(func (param i32) (result i32) (i32.add (local.get 0) (i32.const 7)))".repeat(60_000);
        let large = format!("(module (memory (export \"memory\") 1) {functions} (func (export \"_start\")))");
        let (kind, _) = make(wat::parse_str(large).expect("valid"), &engines).expect("a large program");
        assert!(kind.loaded < 32 << 20, "{}", kind.loaded);
        let refused = made(60).expect_err("216,000 names");
        assert!(refused.to_string().contains("MiB of the host for its names"), "{refused}");
    }
}
