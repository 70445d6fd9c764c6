//! What a guest is linked to, and what its store holds: what every program of WASI has, and all that is in the list of
//! [`capability`].
//!
//! Nothing is inherited from the process. A guest has the clocks and random numbers, its own arguments, environment and
//! output, the capabilities as far as its container was granted them, and nothing that is not named in these two files.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use wasmtime::component::Linker;
use wasmtime::{CallHook, Engine, Store, StoreContextMut};
use wasmtime_wasi::cli::{WasiCli, WasiCliView as _};
use wasmtime_wasi::random::{WasiRandom, WasiRandomView as _};
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use crate::capability::{self, ContainerParts, Env, Granted, States};
use crate::engine::WasiVersion;
use crate::ledger::{Account, Charge, Refused};
use crate::limits::{RANDOM_BYTES_MAX, StoreLimiter};
use crate::logs::{LogSink, LogStream};
use crate::meter::Meter;
use crate::net::{Listener, Namespace};
use crate::preview1::{LISTEN_FDS, Preview1, Stdio};
use crate::sandbox::StartError;
use crate::seats::Seat;
use crate::stdin::Input;

/// Bytes of an instance's structures that are part of what every store takes; most programs have fewer.
const STRUCTURES_FREE: u64 = 256 << 10;

/// What every guest may import, as users know it.
const NAMES: [&str; 4] = ["wasi:cli", "wasi:clocks", "wasi:io", "wasi:random"];

/// What one container's instances are given.
pub(crate) struct Grants {
    args: Vec<String>,
    env: Env,
    working_dir: Option<String>,
    stdout: Arc<dyn LogSink>,
    pub(crate) stderr: Arc<dyn LogSink>,
    stdin: Input,
    pub(crate) namespace: Namespace,
    /// On whose account it all is.
    pub(crate) account: Arc<Account>,
    granted: Granted,
    /// For what the grants take as long as the container lives.
    charges: Vec<Charge>,
}

impl Grants {
    /// What the container's spec grants. Fails where that names what is not there. `stop` ends its standard input.
    pub(crate) fn new(
        container: &ContainerParts<'_>,
        stop: &CancellationToken,
    ) -> Result<Grants, StartError> {
        let ContainerParts { spec, env, namespace, account, .. } = container;
        Ok(Grants {
            args: spec.args.clone(),
            env: Arc::clone(env),
            working_dir: spec.working_dir.clone(),
            stdout: Arc::clone(&spec.stdout),
            stderr: Arc::clone(&spec.stderr),
            stdin: spec.stdin.input(stop),
            namespace: Namespace::clone(namespace),
            account: Arc::clone(account),
            granted: Granted::new(container)?,
            charges: Vec::new(),
        })
    }

    /// Charges for what the grants take of the host, once the container has a seat; or says who has no room for it.
    pub(crate) fn charge(&mut self) -> Result<(), Refused> {
        self.charges = self.granted.charge()?;
        Ok(())
    }

    /// The charge for a new store of an instance with structures of so many bytes, or who has no room for it.
    pub(crate) fn meter(&self, version: WasiVersion, structures: u64) -> Result<Meter, Refused> {
        let args = self.args.iter().map(String::len).sum::<usize>();
        let env = self.env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let strings = self.args.len() + 2 * self.env.len();
        let copied = args + env + strings * std::mem::size_of::<String>();
        let beyond = structures.saturating_sub(STRUCTURES_FREE);
        Meter::new(&self.account, copied as u64 + beyond, version == WasiVersion::P3)
    }

    /// The data of a new store of a component.
    pub(crate) fn state(&self, seat: Seat, meter: Meter) -> State {
        let mut builder = self.builder();
        let Stdio { stdin, stdout, stderr } = self.stdio();
        builder.stdin(stdin).stdout(stdout).stderr(stderr);
        self.state_of(seat, meter, builder.build())
    }

    /// The data of a new store of a core module, which finds these listeners open.
    pub(crate) fn state_of_module(
        &self,
        seat: Seat,
        meter: Meter,
        listeners: Vec<Listener>,
    ) -> wasmtime::Result<State> {
        let mut builder = self.builder();
        if !listeners.is_empty() {
            builder.env(LISTEN_FDS, listeners.len().to_string());
        }
        let mut preview1 = Box::new(Preview1::new(builder.build_p1(), self.stdio()));
        let mut state = self.state_of(seat, meter, WasiCtx::builder().build());
        preview1.begin(&mut state, listeners)?;
        state.preview1 = Some(preview1);
        Ok(state)
    }

    fn builder(&self) -> WasiCtxBuilder {
        let mut builder = WasiCtx::builder();
        builder.args(&self.args).envs(&self.env).max_random_size(RANDOM_BYTES_MAX);
        if let Some(dir) = &self.working_dir {
            builder.initial_cwd(dir);
        }
        builder
    }

    fn stdio(&self) -> Stdio {
        Stdio {
            stdin: self.stdin.clone(),
            stdout: LogStream::new(Arc::clone(&self.stdout), &self.account),
            stderr: LogStream::new(Arc::clone(&self.stderr), &self.account),
        }
    }

    fn state_of(&self, seat: Seat, meter: Meter, wasi: WasiCtx) -> State {
        State {
            table: meter.table(),
            meter,
            wasi,
            preview1: None,
            states: self.granted.states(),
            limiter: StoreLimiter::new(&self.account),
            _seat: seat,
        }
    }
}

/// The data of every store.
///
/// The table is first: what it holds is dropped before what that refers to.
pub(crate) struct State {
    table: ResourceTable,
    meter: Meter,
    wasi: WasiCtx,
    /// Of core modules alone.
    preview1: Option<Box<Preview1>>,
    states: States,
    pub(crate) limiter: StoreLimiter,
    /// Its part of the live instances that the host admits.
    _seat: Seat,
}

/// What a capability's functions need of a store.
pub(crate) struct Parts<'a> {
    /// What capabilities keep; each takes its own.
    pub(crate) states: &'a mut States,
    /// Where the guest's handles live.
    pub(crate) table: &'a mut ResourceTable,
    /// What the table is charged by.
    pub(crate) meter: &'a mut Meter,
}

// These are called at each call of a guest, before what it does: it is here that what the last one left is counted.

impl State {
    /// The guest ends, and with it what it has begun: to be called before its store goes.
    pub(crate) fn end(&mut self) {
        self.states.http.cut_bodies();
    }

    /// What a core module needs. Only stores of such are linked to what asks for it.
    pub(crate) fn preview1(&mut self) -> &mut Preview1 {
        self.preview1.as_mut().expect("the store is of a core module")
    }

    #[inline]
    pub(crate) fn parts(&mut self) -> Parts<'_> {
        self.meter.make_room(&mut self.table);
        Parts { states: &mut self.states, table: &mut self.table, meter: &mut self.meter }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.meter.make_room(&mut self.table);
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Has the table of the store's tasks grow as its guest needs it. wasmtime makes tasks, streams and futures there without
/// asking anybody; but before each call of a guest to the host, those that it carries out itself as well, this is called. On the
/// engine of 0.2 there is no such table.
pub(crate) fn meter_tasks(store: &mut Store<State>) {
    let places = store.data().meter.tasks();
    let Some(tasks) = store.concurrent_resource_table() else { return };
    tasks.set_max_capacity(places);
    store.call_hook(|mut store, call| {
        if matches!(call, CallHook::CallingHost) {
            // Without room, what is made beyond the last place is refused, and traps.
            make_room_for_tasks(&mut store);
        }
        Ok(())
    });
}

/// Whether there is room for the tasks, streams and futures of one call more.
pub(crate) fn make_room_for_tasks(store: &mut StoreContextMut<'_, State>) -> bool {
    let near_end = store.data().meter.tasks_near_end();
    let is_near_end = |tasks: &mut ResourceTable| tasks.get_any_mut(near_end).is_ok();
    if !store.concurrent_resource_table().is_some_and(is_near_end) {
        return true;
    }
    let Some(places) = store.data_mut().meter.grow_tasks() else { return false };
    if let Some(tasks) = store.concurrent_resource_table() {
        tasks.set_max_capacity(places);
    }
    true
}

/// All that a component may import. What is not here cannot be imported.
pub(crate) fn linker(engine: &Engine, version: WasiVersion) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    add_p2_to_linker(&mut linker)?;
    capability::add_p2_to_linker(&mut linker)?;
    if version == WasiVersion::P3 {
        wasmtime_wasi::p3::cli::add_to_linker(&mut linker)?;
        wasmtime_wasi::p3::clocks::add_to_linker(&mut linker)?;
        wasmtime_wasi::p3::random::add_to_linker(&mut linker)?;
        capability::add_p3_to_linker(&mut linker)?;
    }
    Ok(linker)
}

/// What every program of WASI 0.2 has: all of wasmtime-wasi but its sockets, which are the host's own, and its files, which
/// block threads that are everybody's.
fn add_p2_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    use wasmtime_wasi::p2::bindings::{cli, random};
    // I/O, clocks, the secure random numbers and the standard streams.
    wasmtime_wasi::p2::add_to_linker_proxy_interfaces_async(linker)?;
    random::insecure::add_to_linker::<State, WasiRandom>(linker, State::random)?;
    random::insecure_seed::add_to_linker::<State, WasiRandom>(linker, State::random)?;
    cli::environment::add_to_linker::<State, WasiCli>(linker, State::cli)?;
    cli::exit::add_to_linker::<State, WasiCli>(linker, State::cli)?;
    cli::terminal_input::add_to_linker::<State, WasiCli>(linker, State::cli)?;
    cli::terminal_output::add_to_linker::<State, WasiCli>(linker, State::cli)?;
    cli::terminal_stdin::add_to_linker::<State, WasiCli>(linker, State::cli)?;
    cli::terminal_stdout::add_to_linker::<State, WasiCli>(linker, State::cli)?;
    cli::terminal_stderr::add_to_linker::<State, WasiCli>(linker, State::cli)
}

/// The names of all that there is to import.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().chain(capability::NAMES).copied()
}

/// The same for messages.
pub(crate) fn offers() -> String {
    names().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine;

    /// Interfaces of the version, each with something that it has.
    const P2: &[(&str, &str)] = &[
        ("wasi:cli/environment", "get-environment"),
        ("wasi:cli/exit", "exit"),
        ("wasi:cli/stderr", "get-stderr"),
        ("wasi:cli/stdin", "get-stdin"),
        ("wasi:cli/stdout", "get-stdout"),
        ("wasi:cli/terminal-input", "terminal-input"),
        ("wasi:cli/terminal-output", "terminal-output"),
        ("wasi:cli/terminal-stderr", "get-terminal-stderr"),
        ("wasi:cli/terminal-stdin", "get-terminal-stdin"),
        ("wasi:cli/terminal-stdout", "get-terminal-stdout"),
        ("wasi:clocks/monotonic-clock", "now"),
        ("wasi:clocks/wall-clock", "now"),
        ("wasi:filesystem/preopens", "get-directories"),
        ("wasi:filesystem/types", "[method]descriptor.read"),
        ("wasi:http/outgoing-handler", "handle"),
        ("wasi:http/types", "[method]fields.get"),
        ("wasi:io/error", "[method]error.to-debug-string"),
        ("wasi:io/poll", "poll"),
        ("wasi:io/streams", "[method]input-stream.read"),
        ("wasi:random/insecure", "get-insecure-random-u64"),
        ("wasi:random/insecure-seed", "insecure-seed"),
        ("wasi:random/random", "get-random-u64"),
        ("wasi:sockets/instance-network", "instance-network"),
        ("wasi:sockets/ip-name-lookup", "resolve-addresses"),
        ("wasi:sockets/network", "network"),
        ("wasi:sockets/tcp", "[method]tcp-socket.start-bind"),
        ("wasi:sockets/tcp-create-socket", "create-tcp-socket"),
        ("wasi:sockets/udp", "[method]udp-socket.start-bind"),
        ("wasi:sockets/udp-create-socket", "create-udp-socket"),
    ];
    const P3: &[(&str, &str)] = &[
        ("wasi:cli/environment", "get-environment"),
        ("wasi:cli/exit", "exit"),
        ("wasi:cli/stderr", "write-via-stream"),
        ("wasi:cli/stdin", "read-via-stream"),
        ("wasi:cli/stdout", "write-via-stream"),
        ("wasi:cli/terminal-input", "terminal-input"),
        ("wasi:cli/terminal-output", "terminal-output"),
        ("wasi:cli/terminal-stderr", "get-terminal-stderr"),
        ("wasi:cli/terminal-stdin", "get-terminal-stdin"),
        ("wasi:cli/terminal-stdout", "get-terminal-stdout"),
        ("wasi:clocks/monotonic-clock", "now"),
        ("wasi:clocks/system-clock", "now"),
        ("wasi:filesystem/preopens", "get-directories"),
        ("wasi:filesystem/types", "[method]descriptor.stat"),
        ("wasi:http/client", "send"),
        ("wasi:http/types", "[method]fields.get"),
        ("wasi:random/insecure", "get-insecure-random-u64"),
        ("wasi:random/insecure-seed", "get-insecure-seed"),
        ("wasi:random/random", "get-random-u64"),
        ("wasi:sockets/ip-name-lookup", "resolve-addresses"),
        ("wasi:sockets/types", "[method]tcp-socket.bind"),
    ];

    /// Which of them can be defined because nothing has done so yet.
    fn missing(linker: &Linker<State>, interfaces: &[(&str, &str)], version: &str) -> Vec<String> {
        let name = |(interface, item): &(&str, &str)| {
            let mut linker = linker.clone();
            let name = format!("{interface}@{version}");
            let defined = linker
                .instance(&name)
                .expect("an instance")
                .func_wrap(item, |_: StoreContextMut<'_, State>, (): ()| Ok(()));
            defined.is_ok().then_some(name)
        };
        interfaces.iter().filter_map(name).collect()
    }

    #[test]
    fn every_interface_is_there_in_its_version_and_0_3_on_its_engine_alone() {
        let linked = |version| {
            let engine = engine::compiling(version).expect("an engine");
            linker(&engine, version).expect("linked")
        };
        let (p2, p3) = (linked(WasiVersion::P2), linked(WasiVersion::P3));
        for linker in [&p2, &p3] {
            assert_eq!(missing(linker, P2, "0.2.12"), Vec::<String>::new());
        }
        assert_eq!(missing(&p3, P3, "0.3.0"), Vec::<String>::new());
        assert_eq!(missing(&p2, P3, "0.3.0").len(), P3.len());
    }
}
