//! Admission of what the control plane's own components and the nodes write: whole transactions, each in somebody's name.
//!
//! They pass what a client's writes pass: the plugins, and the validation of what is new. What a component asks for is its
//! own: a draft is stored as it was given unless a plugin has completed it, and of an object that was there only what has
//! no status is validated anew, since a status is its component's own word.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use coracle_objects::{
    Applied, Catalog, Endpoint, OBJECT_BYTES_MAX, Object, ObjectKey, Refusal, ResourceName, Revision,
    Transaction, View, Write as StoreWrite, admission::faults_of_new,
};
use serde_json::Value;

use super::{Operation, Write, Writer, handling, mutate, validate};
use crate::{
    answer,
    auth::UserInfo,
    config::ApiConfig,
    error::ApiError,
    metadata,
    served::Serving,
    storage::{Expired, ProposeError, Storage, Unavailable, WatchStream},
    verbs::{create::stored_draft, update::same_but_for_metadata},
};

/// What admission is decided with: the same for the API and for whoever writes beside it. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    pub(crate) config: Arc<ApiConfig>,
    pub(crate) serving: Arc<Serving>,
}

impl Admission {
    pub fn new(config: ApiConfig) -> Self {
        Self { config: Arc::new(config), serving: Arc::default() }
    }

    /// A transaction of this user with all that belongs to it, as it is right in a state. An error says which write may not
    /// be, and why.
    pub async fn admit(
        &self,
        user: &UserInfo,
        view: &View,
        mut transaction: Transaction,
    ) -> Result<Transaction, ApiError> {
        let served = self.serving.at(view);
        let writer = Writer { config: &self.config, user };
        let creates: BTreeSet<ObjectKey> = transaction.expected_absent().into_iter().cloned().collect();
        let mut along = Transaction::default();
        // What goes with an object is decided in the state that it leaves behind.
        let mut state = Cow::Borrowed(view);
        let several = transaction.writes.len() > 1;
        for write in &mut transaction.writes {
            let is_new = creates.contains(write.key());
            along.join(admit(writer, &served.catalog, &state, write, is_new).await?);
            if let (StoreWrite::Delete { key }, true) = (&*write, several)
                && let Some(table) = state.to_mut().tables.get_mut(&key.resource)
            {
                table.remove(&key.name);
            }
        }
        transaction.join(along);
        Ok(transaction)
    }

    /// The store for who writes in this name.
    pub fn storage_of<S: Storage>(&self, storage: S, user: UserInfo) -> Admitted<S> {
        Admitted { storage, admission: self.clone(), user: Arc::new(user) }
    }
}

/// Admits one write, and answers what belongs to it.
async fn admit(
    writer: Writer<'_>,
    kinds: &Catalog,
    view: &View,
    write: &mut StoreWrite,
    is_new: bool,
) -> Result<Transaction, ApiError> {
    let key = write.key().clone();
    let Writer { config, user } = writer;
    let Some(kind) = kinds.by_resource(key.resource.as_str()) else {
        return match user.as_node() {
            // What the API does not serve is nobody's but the control plane's.
            None => Ok(Transaction::default()),
            Some(node) => Err(ApiError::Forbidden {
                resource: Some(key.resource),
                name: key.name.name.to_string(),
                reason: format!("node {node:?} is not allowed to write it"),
            }),
        };
    };
    let old = view.get(&key).filter(|_| !is_new);
    let about = |operation| Write { operation, kind, key: &key, view, config, user, old: None };
    let deletion_is_handled = || handling(&about(Operation::Delete)).next().is_some();
    // The end of what was let go is nobody's to ask for again but a node's, which may say it of its own alone.
    let has_begun = old.is_some_and(|old| old.meta.deletion_timestamp.is_some()) && user.as_node().is_none();
    let operation = operation(old, write, is_new, || !has_begun && deletion_is_handled());
    let Some(operation) = operation else { return Ok(Transaction::default()) };
    let asked = about(operation);
    let is_whole = !kind.has(Endpoint::Status);
    let is_validated = operation == Operation::Create || operation == Operation::Update && is_whole;
    if !is_validated && handling(&asked).next().is_none() {
        return Ok(Transaction::default());
    }
    let before = old.map(|old| answer::present_value(kind, old));
    let asked = Write { old: before.as_ref(), ..asked };
    let (StoreWrite::Put { draft, .. }, true) = (write, operation != Operation::Delete) else {
        validate(&asked, None).await?;
        return Ok(Transaction::default());
    };
    // What is no object the store refuses.
    let Ok(given) = Object::from_draft(key.clone(), draft, 0) else { return Ok(Transaction::default()) };
    let mut object = answer::present_value(kind, &given);
    // Compared with what was stored, which may be older than a default.
    let content_stays = asked.old.is_some_and(|old| leaves_its_content(old, &object));
    if is_validated {
        kind.defaults(&mut object);
    }
    let may_change = handling(&asked).any(|plugin| plugin.changes_objects());
    let complete = may_change.then(|| object.clone());
    let along = mutate(&asked, &mut object).await?;
    let errors = match asked.old {
        None => faults_of_new(kind, &object),
        Some(old) if is_whole && !content_stays => kind.validate(&object, Some(old)),
        Some(_) => Vec::new(),
    };
    if !errors.is_empty() {
        return Err(ApiError::invalid(kind, &key.name.name, errors));
    }
    validate(&asked, Some(&object)).await?;
    if complete.is_some_and(|complete| complete != object) {
        kind.to_storage(&mut object);
        *draft = stored_draft(kind, &object).into();
    }
    Ok(along)
}

/// What a write does to an object; none where it will find that there is nothing, or that nobody has a say in.
fn operation(
    old: Option<&Arc<Object>>,
    write: &StoreWrite,
    is_new: bool,
    deletion_is_handled: impl Fn() -> bool,
) -> Option<Operation> {
    match (write, old) {
        (StoreWrite::Put { .. }, None) => is_new.then_some(Operation::Create),
        (StoreWrite::Put { draft, .. }, Some(old)) => {
            let begins_to_end =
                old.meta.deletion_timestamp.is_none() && deletion_is_handled() && is_ending(&old.key, draft);
            Some(if begins_to_end { Operation::Delete } else { Operation::Update })
        }
        (StoreWrite::Delete { .. }, old) => old.filter(|_| deletion_is_handled()).map(|_| Operation::Delete),
    }
}

fn is_ending(key: &ObjectKey, draft: &[u8]) -> bool {
    Object::from_draft(key.clone(), draft, 0).is_ok_and(|object| object.meta.deletion_timestamp.is_some())
}

/// Only metadata changes: what was taken under older rules is not held back by that.
fn leaves_its_content(old: &Value, new: &Value) -> bool {
    metadata::deleting(old) || same_but_for_metadata(old, new)
}

/// A store whose writes are somebody's, and pass admission as such. Reads are the store's own.
#[derive(Clone)]
pub struct Admitted<S> {
    storage: S,
    admission: Admission,
    user: Arc<UserInfo>,
}

impl<S: Storage> Storage for Admitted<S> {
    fn view(&self) -> Arc<View> {
        self.storage.view()
    }

    async fn linearizable(&self) -> Result<Arc<View>, Unavailable> {
        self.storage.linearizable().await
    }

    fn view_at(&self, resource: &ResourceName, revision: Revision) -> Option<Arc<View>> {
        self.storage.view_at(resource, revision)
    }

    fn is_led(&self) -> bool {
        self.storage.is_led()
    }

    /// What the local state does not admit is looked at once more in the newest: where that would refuse it, it is to be
    /// decided anew. What no store takes is not sent there.
    async fn propose(&self, transaction: Transaction) -> Result<Result<Applied, Refusal>, ProposeError> {
        if let Some(refusal) = transaction.too_large(OBJECT_BYTES_MAX) {
            return Ok(Err(refusal));
        }
        let local = self.storage.view();
        if let Ok(admitted) = self.admission.admit(&self.user, &local, transaction.clone()).await {
            return self.storage.propose(admitted).await;
        }
        let newest = self.storage.linearizable().await;
        let newest = newest.map_err(|error| ProposeError::Unavailable(error.to_string()))?;
        if let Some(refusal) = transaction.refused_by(&newest) {
            return Ok(Err(refusal));
        }
        match self.admission.admit(&self.user, &newest, transaction).await {
            Ok(admitted) => self.storage.propose(admitted).await,
            Err(error) => Err(ProposeError::Denied(Box::new(error))),
        }
    }

    fn watch(&self, resource: &ResourceName, after: Revision) -> Result<WatchStream, Expired> {
        self.storage.watch(resource, after)
    }
}
