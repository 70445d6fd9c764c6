//! What can be run, what cannot and why, and the cache of compiled code.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::{Entry, Exit, PrepareError};

async fn refused(bench: &Bench, bytes: &[u8]) -> PrepareError {
    let path = bench.dir.path().join("bad.wasm");
    fs::write(&path, bytes).expect("written");
    bench.host.prepare(&path, "default").await.expect_err("not to be run")
}

#[tokio::test]
async fn what_cannot_run_is_refused_with_the_mend() {
    let bench = Bench::new(1);
    let garbage = refused(&bench, b"#!/bin/sh\necho hello\n").await;
    assert!(matches!(garbage, PrepareError::NotWasm { .. }) && garbage.to_string().contains("wasm32-wasip2"));
    assert!(refused(&bench, b"").await.to_string().contains("empty"));
    let foreign =
        wat::parse_str(r#"(module (import "env" "emscripten_sleep" (func)) (func (export "_start")))"#);
    let foreign = refused(&bench, &foreign.expect("valid")).await;
    assert!(foreign.to_string().contains("env.emscripten_sleep"), "{foreign}");
    let library = wat::parse_str(r#"(module (func (export "add")))"#).expect("valid");
    let library = refused(&bench, &library).await;
    assert!(matches!(&library, PrepareError::NoEntry { exports } if exports == "add"), "{library}");
    let wide = wat::parse_str(
        r#"(module (memory (export "memory") 1) (table 100001 funcref) (func (export "_start")))"#,
    )
    .expect("valid");
    let wide = refused(&bench, &wide).await;
    assert!(
        matches!(wide, PrepareError::Compile { .. }) && wide.to_string().contains("100000 at most"),
        "{wide}"
    );
    let component = wat::parse_str(r#"(component)"#).expect("valid");
    assert!(matches!(refused(&bench, &component).await, PrepareError::NoEntry { .. }));
    let mut cut = wat::parse_str(spinner()).expect("valid");
    cut.truncate(cut.len() - 3);
    let cut = refused(&bench, &cut).await;
    assert!(matches!(cut, PrepareError::Compile { .. }), "{cut}");
    let missing = bench.host.prepare(Path::new("/nowhere.wasm"), "default").await.expect_err("no such file");
    assert!(missing.to_string().contains("/nowhere.wasm"), "{missing}");
}

#[tokio::test]
async fn what_cannot_be_imported_is_told_by_name_with_what_can() {
    let bench = Bench::new(1);
    let text = r#"(component
        (import "wasi:keyvalue/store@0.2.0-draft" (instance (export "open" (func))))
        (core module $m (func (export "run") (result i32) (i32.const 0)))
        (core instance $i (instantiate $m))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $r (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $r)))"#;
    let path = bench.write("needs.wasm", text);
    let refused = bench.host.prepare(&path, "default").await.expect_err("there is none");
    assert!(matches!(refused, PrepareError::MissingImport { .. }), "{refused}");
    let (told, offered) =
        (refused.to_string(), "there are wasi:cli, wasi:clocks, wasi:io, wasi:random, wasi:sockets");
    assert!(told.contains("`wasi:keyvalue/store@0.2.0-draft`") && told.contains(offered), "{told}");
}

#[tokio::test]
async fn a_file_that_is_too_large_is_not_read() {
    let bench = Bench::new(1);
    let path = bench.dir.path().join("large.wasm");
    fs::File::create(&path).and_then(|file| file.set_len((256 << 20) + 1)).expect("a file of nothing");
    let refused = bench.host.prepare(&path, "default").await.expect_err("too large");
    assert!(matches!(refused, PrepareError::TooLarge { .. }), "{refused}");
}

/// A module with a custom section of this name.
fn with_section(text: &str, name: &str) -> Vec<u8> {
    let mut module = wat::parse_str(text).expect("valid");
    module.extend([&[0, name.len() as u8 + 1, name.len() as u8][..], name.as_bytes()].concat());
    module
}

#[tokio::test]
async fn a_module_of_which_no_component_was_made_is_refused_where_it_needs_one() {
    let bench = Bench::new(1);
    let library = r#"(module (func (export "wasi:http/incoming-handler@0.2.0#handle")))"#;
    let foreign = r#"(module (import "wasi:http/types@0.2.0" "f" (func)) (func (export "_start")))"#;
    for text in [library, foreign] {
        let told = refused(&bench, &with_section(text, "component-type:handler")).await;
        assert!(told.to_string().contains("wasm-tools component new"), "{told}");
    }
    // A program that imports preview 1 alone runs whatever else it carries.
    let path = bench.dir.path().join("typed.wasm");
    fs::write(&path, with_section(&module("(call $exit (i32.const 5))"), "component-type:x"))
        .expect("written");
    let typed = bench.host.prepare(&path, "default").await.expect("runnable");
    assert_eq!(bench.start(typed).wait().await, Exit::Completed { code: 5 });
    let parameter = module("").replace(r#"(export "_start")"#, r#"(export "_start") (param i32)"#);
    let told = refused(&bench, &wat::parse_str(parameter).expect("valid")).await;
    assert!(told.to_string().contains("`_start`"), "{told}");
    let unknown = r#"(module (import "wasi_snapshot_preview1" "fd_fork" (func)) (func (export "_start")))"#;
    let told = refused(&bench, &wat::parse_str(unknown).expect("valid")).await;
    assert!(told.to_string().contains("fd_fork"), "{told}");
}

#[tokio::test]
async fn entries_are_what_components_export() {
    let bench = Bench::new(1);
    assert_eq!(bench.sample("tcp-echo").await.entry(), Entry::Command);
    assert_eq!(bench.sample("hello-http").await.entry(), Entry::HttpP2);
    assert_eq!(bench.sample("hello-http-p3").await.entry(), Entry::HttpP3);
}

#[tokio::test]
async fn the_same_bytes_are_compiled_once_and_found_by_the_next_host() {
    let bench = Bench::new(1);
    let path = bench.write("guest.wasm", &module("(call $exit (i32.const 5))"));
    let (first, second) =
        tokio::join!(bench.host.prepare(&path, "default"), bench.host.prepare(&path, "default"));
    assert!(Arc::ptr_eq(&first.expect("prepared"), &second.expect("prepared")));
    assert_eq!(bench.host.compiles().succeeded, 1);
    let next = host(&bench.dir, 1);
    next.prepare(&path, "default").await.expect("from the cache");
    assert_eq!(next.compiles().succeeded, 0);
    let key = bench.dir.path().join("cache/key");
    assert_eq!(fs::metadata(key).expect("a key").permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn compiled_code_that_was_touched_is_never_loaded() {
    let bench = Bench::new(1);
    let path = bench.write("guest.wasm", &module("(call $exit (i32.const 5))"));
    bench.host.prepare(&path, "default").await.expect("prepared");
    let cached = fs::read_dir(bench.dir.path().join("cache")).expect("a cache");
    let code = cached
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.extension().is_some_and(|extension| extension == "cwasm"))
        .expect("compiled code");
    let mut bytes = fs::read(&code).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&code, bytes).expect("written");
    let next = host(&bench.dir, 1);
    let artifact = next.prepare(&path, "default").await.expect("compiled anew");
    assert_eq!(next.compiles().succeeded, 1);
    let container = next.pod(PodLimits::default(), namespace()).start(bench.spec(artifact)).expect("started");
    assert_eq!(container.wait().await, Exit::Completed { code: 5 });
    assert_eq!(
        host(&bench.dir, 1).prepare(&path, "default").await.map(|_| ()).map_err(|error| error.to_string()),
        Ok(())
    );
}

#[tokio::test]
async fn a_compiler_of_its_own_process_gives_code_or_its_complaint() {
    let bench = Bench::new(1);
    let path = bench.write("guest.wasm", &module("(call $exit (i32.const 6))"));
    bench.host.prepare(&path, "default").await.expect("prepared");
    let cache = bench.dir.path().join("cache");
    let script = |name: &str, text: String| {
        let path = bench.dir.path().join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("executable");
        path
    };
    let with = |name: &str, compiler| {
        let cache_dir = bench.dir.path().join(name);
        Host::new(HostConfig {
            cache_dir,
            guest_threads: 1,
            max_instances: INSTANCES,
            compiler: Some(compiler),
        })
        .expect("a host")
    };
    // Stands for the real one: gives the code that was compiled before.
    let copying = format!(
        "#!/bin/sh\n[ \"$1\" = compile-component ] && /bin/cat {}/*.cwasm && echo made command p1 p2 0 0 >&2\n",
        cache.display()
    );
    let host = with("a", script("copying", copying));
    assert_eq!(host.prepare(&path, "default").await.expect("compiled").entry(), Entry::Command);
    let host = with("b", script("failing", "#!/bin/sh\necho refused too strange >&2\nexit 1\n".to_owned()));
    let error = host.prepare(&path, "default").await.expect_err("the compiler refuses");
    assert!(error.to_string().contains("too strange"), "{error}");
}

/// A host whose compiler is this shell script.
fn host_with(bench: &Bench, name: &str, script: &str) -> Host {
    let path = bench.dir.path().join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("executable");
    let cache_dir = bench.dir.path().join(format!("{name}-cache"));
    Host::new(HostConfig { cache_dir, guest_threads: 1, max_instances: INSTANCES, compiler: Some(path) })
        .expect("a host")
}

/// A script that notes its process in `pid`, and hangs.
fn hanging(bench: &Bench) -> String {
    format!(
        "echo $$ > {0}/pid.new; /bin/mv {0}/pid.new {0}/pid; exec /bin/sleep 600",
        bench.dir.path().display()
    )
}

/// Waits until the hanging compiler runs.
async fn hangs(bench: &Bench) -> rustix::process::Pid {
    let file = bench.dir.path().join("pid");
    loop {
        if let Ok(text) = fs::read_to_string(&file) {
            let pid = text.trim().parse().expect("a number");
            return rustix::process::Pid::from_raw(pid).expect("a process id");
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn lives(pid: rustix::process::Pid) -> bool {
    rustix::process::test_kill_process(pid).is_ok()
}

fn files_of(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn what_cannot_be_made_is_tried_once_however_many_ask() {
    let bench = Bench::new(1);
    let path = bench.write("guest.wasm", &spinner());
    let count = bench.dir.path().join("count");
    let script = format!("echo x >> {}; echo refused too strange >&2; exit 1", count.display());
    let host = host_with(&bench, "refusing", &script);
    let ask = |at: usize| {
        let (host, path) = (host.clone(), path.clone());
        async move { host.prepare(&path, &format!("ns-{at}")).await.expect_err("refused").to_string() }
    };
    for said in futures::future::join_all((0..100).map(ask)).await {
        assert!(said.contains("too strange"), "{said}");
    }
    assert!(ask(0).await.contains("too strange"));
    assert_eq!(fs::read_to_string(&count).expect("counted"), "x\n");
    // What it says is read to a bound.
    let script = "printf 'refused '; /usr/bin/head -c 1000000 /dev/zero | /usr/bin/tr '\\0' x; exit 1";
    let host = host_with(&bench, "talking", &format!("({script}) >&2"));
    let said = host.prepare(&path, "default").await.expect_err("refused").to_string();
    assert!(said.contains("xxx") && said.len() < 8192, "{} bytes", said.len());
    // A compiler that dies has said nothing for good, but is not asked again at once either.
    let script = format!("echo x >> {}; kill -9 $$", count.display());
    let host = host_with(&bench, "dying", &script);
    for _ in 0..3 {
        let error = host.prepare(&path, "default").await.expect_err("given up");
        assert!(matches!(&error, PrepareError::GivenUp { .. }), "{error}");
    }
    assert_eq!(fs::read_to_string(&count).expect("counted"), "x\nx\n");
}

#[tokio::test]
async fn a_compile_goes_on_as_long_as_somebody_waits_for_it() {
    let bench = Bench::new(1);
    let path = bench.write("guest.wasm", &spinner());
    let host = host_with(&bench, "hanging", &hanging(&bench));
    let ask = |namespace: &'static str| {
        let (host, path) = (host.clone(), path.clone());
        tokio::spawn(async move { host.prepare(&path, namespace).await.map(drop) })
    };
    let first = ask("a");
    let pid = hangs(&bench).await;
    let second = ask("b");
    // The second one has joined when it waits.
    while host.waiting_for_compiler() < 2 {
        tokio::task::yield_now().await;
    }
    first.abort();
    assert!(first.await.expect_err("given up").is_cancelled());
    assert!(lives(pid));
    second.abort();
    assert!(second.await.expect_err("given up").is_cancelled());
    let ended = async {
        while lives(pid) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let ended = tokio::time::timeout(std::time::Duration::from_secs(60), ended).await;
    assert!(ended.is_ok(), "the compiler runs for nobody");
    assert_eq!(host.waiting_for_compiler(), 0);
    assert_eq!(files_of(&bench.dir.path().join("hanging-cache")), ["key"]);
    let held = host.held();
    assert!(held.contains(&("artifacts in memory", 0)), "{held:?}");
}

#[tokio::test]
async fn what_is_compiled_waits_for_no_compiler() {
    let bench = Bench::new(1);
    let known = bench.write("known.wasm", &spinner());
    bench.host.prepare(&known, "default").await.expect("prepared");
    let host = host_with(&bench, "hanging", &hanging(&bench));
    for name in files_of(&bench.dir.path().join("cache")) {
        let cache = |of: &str| bench.dir.path().join(of).join(&name);
        fs::copy(cache("cache"), cache("hanging-cache")).expect("copied");
    }
    let next = Host::new(HostConfig {
        cache_dir: bench.dir.path().join("hanging-cache"),
        guest_threads: 1,
        max_instances: INSTANCES,
        compiler: Some(bench.dir.path().join("hanging")),
    });
    drop(host);
    let next = next.expect("a host");
    let slow: Vec<_> = (0..3)
        .map(|at| {
            let path = bench.write(&format!("slow-{at}.wasm"), &module(&format!("(drop (i32.const {at}))")));
            let host = next.clone();
            tokio::spawn(async move { host.prepare(&path, "default").await.map(drop) })
        })
        .collect();
    hangs(&bench).await;
    next.prepare(&known, "default").await.expect("from the cache, at once");
    assert_eq!(next.compiles().succeeded, 0);
    for task in slow {
        task.abort();
        let _ = task.await;
    }
}
