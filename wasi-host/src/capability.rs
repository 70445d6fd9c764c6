//! Capabilities: what guests have beside what every program of WASI has, i.e. its arguments, clocks and random numbers.
//!
//! A capability is a module with a type that implements [`Capability`], and an entry of the list at the end of this file.
//! That list is all that linkers, containers and stores go by: what is not in it no guest can import. Each capability is
//! known by its type, so that a guest's call reaches it without a look-up.

use std::any::Any;
use std::sync::Arc;

use wasmtime::component::Linker;

use crate::disk::PodDisk;
use crate::host;
use crate::ledger::{Account, Charge, Refused};
use crate::linker;
use crate::net::Namespace;
use crate::sandbox::{ContainerSpec, StartError};

/// A container's whole environment. Who needs a part of it shares it.
pub(crate) type Env = Arc<[(Arc<str>, Arc<str>)]>;

/// What of a container its grants are made of.
pub(crate) struct ContainerParts<'a> {
    /// What was asked for.
    pub(crate) spec: &'a ContainerSpec,
    pub(crate) env: &'a Env,
    /// The pod's network, by the container's own handle.
    pub(crate) namespace: &'a Namespace,
    /// On which all is that the host holds for the container.
    pub(crate) account: &'a Arc<Account>,
    /// The pod's part of the disk.
    pub(crate) disk: &'a PodDisk,
    pub(crate) host: &'a host::Inner,
}

/// Something that guests may be given.
pub(crate) trait Capability {
    /// The package or interface of WASI that it is, as users know it.
    const NAME: &'static str;

    /// What a container is granted, for all its stores.
    type Grant;

    /// What one store keeps.
    type State;

    /// Adds what components may import of it, of WASI 0.2 and of what has no 0.3 yet.
    fn add_p2_to_linker(linker: &mut Linker<linker::State>) -> wasmtime::Result<()>;

    /// Adds what is of WASI 0.3, on an engine with concurrency support.
    fn add_p3_to_linker(_linker: &mut Linker<linker::State>) -> wasmtime::Result<()> {
        Ok(())
    }

    /// What the container's spec grants. Fails where that names what is not there.
    ///
    /// There may still be no room for the container: what the grant itself takes is for [`Capability::charge`].
    fn grant(container: &ContainerParts<'_>) -> Result<Self::Grant, StartError>;

    /// The charge for what the grant has the host hold as long as the container lives, or whose bound that is beyond.
    fn charge(_grant: &Self::Grant) -> Result<Option<Charge>, Refused> {
        Ok(None)
    }

    /// What a new store keeps. It is a part of what every store is charged for, and has to be small.
    fn state(grant: &Self::Grant) -> Self::State;

    /// What an entry of a store's table takes of the host beside its place there, as far as a guest can make it large; 0
    /// where it is none of this capability's.
    fn content_bytes(_entry: &dyn Any) -> u64 {
        0
    }
}

macro_rules! capabilities {
    ($($name:ident: $capability:ty,)*) => {
        /// The names of all, for messages.
        pub(crate) const NAMES: &[&str] = &[$(<$capability as Capability>::NAME),*];

        /// What one container is granted.
        pub(crate) struct Granted {
            $($name: <$capability as Capability>::Grant,)*
        }

        /// What one store keeps, each for its own capability.
        pub(crate) struct States {
            $(pub(crate) $name: <$capability as Capability>::State,)*
        }

        impl Granted {
            /// See [`Capability::grant`].
            pub(crate) fn new(container: &ContainerParts<'_>) -> Result<Granted, StartError> {
                Ok(Granted { $($name: <$capability>::grant(container)?,)* })
            }

            /// See [`Capability::charge`].
            pub(crate) fn charge(&self) -> Result<Vec<Charge>, Refused> {
                let all = [$(<$capability>::charge(&self.$name)?),*];
                Ok(all.into_iter().flatten().collect())
            }

            /// See [`Capability::state`].
            pub(crate) fn states(&self) -> States {
                States { $($name: <$capability>::state(&self.$name),)* }
            }
        }

        /// See [`Capability::add_p2_to_linker`].
        pub(crate) fn add_p2_to_linker(linker: &mut Linker<linker::State>) -> wasmtime::Result<()> {
            $(<$capability>::add_p2_to_linker(linker)?;)*
            Ok(())
        }

        /// See [`Capability::add_p3_to_linker`].
        pub(crate) fn add_p3_to_linker(linker: &mut Linker<linker::State>) -> wasmtime::Result<()> {
            $(<$capability>::add_p3_to_linker(linker)?;)*
            Ok(())
        }

        /// See [`Capability::content_bytes`].
        pub(crate) fn content_bytes(entry: &dyn Any) -> u64 {
            0 $(+ <$capability>::content_bytes(entry))*
        }
    };
}

capabilities! {
    sockets: crate::sockets::PodSockets,
    http: crate::http::PodHttp,
    files: crate::files::PodFiles,
    config: crate::config::PodConfig,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_told_of_all() {
        let readme = include_str!("../../README.md");
        for name in NAMES {
            assert!(readme.contains(&format!("`{name}`")), "the README says nothing of {name}");
        }
    }
}
