//! Where compiled code is kept: the boundary between what makes and runs code, and disks and other machines.
//!
//! A store is asked by [`CodeKey`], and what it gives is believed in nothing: code is authenticated after it was got and
//! before it is loaded ([`super::seal`]), so that the worst that a store can do is to have code compiled anew. Today there is
//! one, on this node's disk ([`LocalStore`]). One that shares code in the cluster stands in front of it: it brings what other
//! nodes have compiled ([`CodeStore::bring`]), and tells them what was put.

mod local;
mod pins;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use super::error::PrepareError;

pub(crate) use super::desk::Desk;
pub(crate) use super::seal::Voucher;
pub(crate) use local::LocalStore;
pub(crate) use pins::{Pin, Pins};

/// What compiled code is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct CodeKey {
    /// SHA-256 of the component's file, in hex.
    pub(crate) digest: String,
    /// All that code depends on beside the component: the engines with what they compile for, and how components are
    /// reckoned. Code of one node serves another where this is the same.
    pub(crate) target: Arc<str>,
}

impl fmt::Display for CodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.digest, self.target)
    }
}

/// Code that a store has.
pub(crate) struct Kept {
    /// On this node, since it is mapped and not read. Only this user may write to it, and nobody does any more: it may be
    /// removed, or replaced as a whole, at any time.
    pub(crate) path: PathBuf,
    /// What the store was given with it.
    pub(crate) voucher: Voucher,
}

/// Keeps compiled code.
///
/// All but [`CodeStore::bring`] may block, for as long as this node's disk takes: it is called where that is allowed (see
/// [`Desk`]), in the turn of a namespace, and has what is here. What a store has not, or fails to give, is compiled.
#[async_trait]
pub(crate) trait CodeStore: Send + Sync + 'static {
    /// Whether code is here before it would be compiled, if need be after it was brought from elsewhere. Asked once for all
    /// that wait for a component, on the account of `desk`. It is given up with them, and where it takes longer than
    /// [`super::pipeline::BRING_MAX`].
    async fn bring(&self, key: &CodeKey, desk: &Desk) -> bool;

    /// Bytes of code that is here; none where there is no such code.
    fn size(&self, key: &CodeKey) -> Option<u64>;

    /// Code that is here, to be loaded now. It need not be whole.
    fn get(&self, key: &CodeKey) -> io::Result<Option<Kept>>;

    /// Sees that there is room for so many bytes of code, before they are made: what is not used goes for them. Fails with
    /// [`PrepareError::NoRoom`].
    fn make_room(&self, bytes: u64) -> Result<(), PrepareError>;

    /// Keeps code in place of what there was of this key, on account of the voucher's owner. `code` may be open elsewhere:
    /// what is kept is a copy. Beyond the store's bound what is not used goes, never what is pinned, nor this before it was
    /// loaded.
    fn put(&self, key: &CodeKey, code: File, voucher: &Voucher) -> Result<(), PrepareError>;

    /// Lets go of code that is not what it should be. It is neither given nor brought again: it takes other code to be put,
    /// or to be had from elsewhere.
    fn remove(&self, key: &CodeKey);

    /// By which the store is told how code that was loaded is used, as long as they are kept: the same for all that ask.
    fn pins(&self, key: &CodeKey) -> Arc<Pins>;
}
