//! What can be run, what cannot and why, and the cache of compiled code.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::{Entry, Exit, PrepareError};

async fn refused(bench: &Bench, bytes: &[u8]) -> PrepareError {
    let path = bench.dir.path().join("bad.wasm");
    fs::write(&path, bytes).expect("written");
    bench.host.prepare(&path).await.expect_err("not to be run")
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
    let component = wat::parse_str(r#"(component)"#).expect("valid");
    assert!(matches!(refused(&bench, &component).await, PrepareError::NoEntry { .. }));
    let mut cut = wat::parse_str(spinner()).expect("valid");
    cut.truncate(cut.len() - 3);
    let cut = refused(&bench, &cut).await;
    assert!(matches!(cut, PrepareError::Compile { .. }), "{cut}");
    let missing = bench.host.prepare(Path::new("/nowhere.wasm")).await.expect_err("no such file");
    assert!(missing.to_string().contains("/nowhere.wasm"), "{missing}");
}

#[tokio::test]
async fn modules_of_an_old_clang_are_refused() {
    let bench = Bench::new(1);
    let mut module = wat::parse_str(spinner()).expect("valid");
    let field = |name: &str, version: &str| {
        let sized = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        [&[1][..], &sized("processed-by"), &[1], &sized(name), &sized(version)].concat()
    };
    let name = [&[9][..], b"producers"].concat();
    let body = [name, field("clang", "14.0.6")].concat();
    module.extend([&[0, body.len() as u8][..], &body].concat());
    let old = refused(&bench, &module).await;
    assert!(matches!(&old, PrepareError::OldClang { version } if version == "14.0.6"), "{old}");
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
    let (first, second) = tokio::join!(bench.host.prepare(&path), bench.host.prepare(&path));
    assert!(Arc::ptr_eq(&first.expect("prepared"), &second.expect("prepared")));
    assert_eq!(bench.host.compiled(), 1);
    let next = host(&bench.dir, 1);
    next.prepare(&path).await.expect("from the cache");
    assert_eq!(next.compiled(), 0);
    let key = bench.dir.path().join("cache/key");
    assert_eq!(fs::metadata(key).expect("a key").permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn compiled_code_that_was_touched_is_never_loaded() {
    let bench = Bench::new(1);
    let path = bench.write("guest.wasm", &module("(call $exit (i32.const 5))"));
    bench.host.prepare(&path).await.expect("prepared");
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
    let artifact = next.prepare(&path).await.expect("compiled anew");
    assert_eq!(next.compiled(), 1);
    let container = next.pod(PodLimits::default(), namespace()).start(bench.spec(artifact)).expect("started");
    assert_eq!(container.wait().await, Exit::Completed { code: 1 });
    assert_eq!(
        host(&bench.dir, 1).prepare(&path).await.map(|_| ()).map_err(|error| error.to_string()),
        Ok(())
    );
}

#[tokio::test]
async fn a_compiler_of_its_own_process_gives_code_or_its_complaint() {
    let bench = Bench::new(1);
    let path = bench.write("guest.wasm", &module("(call $exit (i32.const 6))"));
    bench.host.prepare(&path).await.expect("prepared");
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
    let copying =
        format!("#!/bin/sh\n[ \"$1\" = compile-component ] && /bin/cp {}/*.cwasm \"$4\"\n", cache.display());
    let host = with("a", script("copying", copying));
    assert_eq!(host.prepare(&path).await.expect("compiled").entry(), Entry::Command);
    let host = with("b", script("failing", "#!/bin/sh\necho too strange >&2\nexit 1\n".to_owned()));
    let error = host.prepare(&path).await.expect_err("the compiler refuses");
    assert!(error.to_string().contains("too strange"), "{error}");
}
