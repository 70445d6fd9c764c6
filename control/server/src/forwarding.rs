//! Calls that only the leader answers: another member hands them on to it, once. Two members whose views of the leader
//! are old would hand them back and forth.

use coracle_storage::ReplicatedStorage;
use tonic::{Request, Status, metadata::MetadataValue, transport::Channel};

/// The metadata of a call that another member has handed on.
const FORWARDED_KEY: &str = "coracle-forwarded";

pub fn is_forwarded<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(FORWARDED_KEY)
}

/// A message to the leader on behalf of a caller.
pub fn forwarding<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(FORWARDED_KEY, MetadataValue::from_static("1"));
    request
}

/// Why a call that was handed on is not handed on again.
pub fn not_leading() -> Status {
    Status::unavailable("this member does not lead any more; try again")
}

/// The leader, where it is another member and the call may be handed on to it; `None` where this member leads.
#[allow(clippy::result_large_err, reason = "the error type of tonic services")]
pub fn leader_elsewhere<T>(
    storage: &ReplicatedStorage,
    request: &Request<T>,
) -> Result<Option<Channel>, Status> {
    if storage.leads() {
        return Ok(None);
    }
    if is_forwarded(request) {
        return Err(not_leading());
    }
    storage.leader_channel().map(Some).ok_or_else(|| Status::unavailable("no leader is known"))
}
