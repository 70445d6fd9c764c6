//! A guest's store: what the guest has begun is ended before it goes, so that others can tell it from what is whole.

use std::ops::{Deref, DerefMut};

use wasmtime::{AsContext, AsContextMut, Store, StoreContext, StoreContextMut};

use crate::linker::State;

pub(crate) struct GuestStore(Store<State>);

impl From<Store<State>> for GuestStore {
    fn from(store: Store<State>) -> Self {
        Self(store)
    }
}

impl Drop for GuestStore {
    fn drop(&mut self) {
        self.0.data_mut().end();
    }
}

impl Deref for GuestStore {
    type Target = Store<State>;

    fn deref(&self) -> &Store<State> {
        &self.0
    }
}

impl DerefMut for GuestStore {
    fn deref_mut(&mut self) -> &mut Store<State> {
        &mut self.0
    }
}

impl AsContext for GuestStore {
    type Data = State;

    fn as_context(&self) -> StoreContext<'_, State> {
        self.0.as_context()
    }
}

impl AsContextMut for GuestStore {
    fn as_context_mut(&mut self) -> StoreContextMut<'_, State> {
        self.0.as_context_mut()
    }
}
