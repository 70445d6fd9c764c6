//! Programs: from the start to the end of what is entered once.

use std::sync::Arc;

use wasmtime::Instance;

use crate::artifact::Pre;
use crate::executor::JoinError;
use crate::exit::Exit;
use crate::sandbox::{Sandbox, StartError};
use crate::store::GuestStore;

/// Starts a program. A core module finds a listening socket for each of the ports.
pub(crate) fn start(sandbox: &Arc<Sandbox>, ports: &[u16]) -> Result<(), StartError> {
    let store = match &sandbox.artifact.pre {
        Pre::CommandP1(_) => {
            let listeners = ports.iter().map(|port| sandbox.listen(*port)).collect::<Result<_, _>>()?;
            sandbox.store_of_module(sandbox.share.take()?, listeners)?
        }
        _ => sandbox.store(sandbox.share.take()?)?,
    };
    let running = Arc::clone(sandbox);
    let task = sandbox.host.executor.spawn(&sandbox.group, None, async move { run(&running, store).await });
    let sandbox = Arc::clone(sandbox);
    let runtime = sandbox.host.runtime.clone();
    runtime.spawn(async move {
        let exit = match task.await {
            Ok(exit) => exit,
            Err(JoinError::Aborted) => Exit::Killed,
            Err(error @ JoinError::Panicked(_)) => {
                tracing::error!(container = sandbox.name, %error, "host panicked serving a guest");
                Exit::HostFault { message: error.to_string() }
            }
        };
        sandbox.end(exit);
    });
    Ok(())
}

/// Runs a program from its instantiation to its end. The store is gone, and with it all that it held, on return.
async fn run(sandbox: &Sandbox, mut store: GuestStore) -> Exit {
    let returned = match &sandbox.artifact.pre {
        Pre::CommandP1(pre) => match pre.instantiate_async(&mut store).await {
            Ok(module) => call_start(module, &mut store).await.map(Ok),
            Err(error) => return sandbox.not_made(&error),
        },
        Pre::CommandP2(pre) => match pre.instantiate_async(&mut store).await {
            Ok(command) => command.wasi_cli_run().call_run(&mut store).await,
            Err(error) => return sandbox.not_made(&error),
        },
        Pre::CommandP3(pre) => match pre.instantiate_async(&mut store).await {
            Ok(command) => {
                let ran =
                    store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await).await;
                ran.flatten()
            }
            Err(error) => return sandbox.not_made(&error),
        },
        Pre::HttpP2(_) | Pre::HttpP3(_) => {
            Err(wasmtime::Error::msg("an HTTP component has no program to run"))
        }
    };
    match returned {
        Ok(Ok(())) => Exit::Completed { code: 0 },
        Ok(Err(())) => Exit::Completed { code: 1 },
        Err(error) => sandbox.classify(&error),
    }
}

/// Enters a core module.
async fn call_start(module: Instance, store: &mut GuestStore) -> wasmtime::Result<()> {
    let start = module.get_typed_func::<(), ()>(&mut *store, "_start")?;
    start.call_async(&mut *store, ()).await
}
