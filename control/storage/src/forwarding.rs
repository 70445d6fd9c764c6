//! What members say to each other of writes and reads that go to the leader.

use std::time::Duration;

use coracle_proto::{MESSAGE_BYTES_MAX, cluster::leader_client::LeaderClient};
use tonic::{metadata::MetadataValue, transport::Channel};

/// Until the leader must have answered one forwarded call.
pub const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of the leader service with our bounds.
pub fn leader_client(channel: Channel) -> LeaderClient<Channel> {
    LeaderClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The metadata with which a leader says that a write was certainly not done.
const NOT_DONE_KEY: &str = "coracle-not-done";

/// The metadata with which a request is answered whose sequence is too low to be applied: see [`forgotten`].
const CLOCK_KEY: &str = "coracle-clock";

/// The answer to a write that was certainly not done, for this reason.
pub fn not_done(mut status: tonic::Status) -> tonic::Status {
    status.metadata_mut().insert(NOT_DONE_KEY, MetadataValue::from_static("1"));
    status
}

/// The answer to a request that the store may have forgotten. What never was applied is so under a sequence above the
/// clock.
pub fn forgotten(clock: u64) -> tonic::Status {
    let mut status = tonic::Status::failed_precondition(format!(
        "the sequence is not one that the store remembers: a new request has one just above its clock, {clock}"
    ));
    status.metadata_mut().insert(CLOCK_KEY, clock.into());
    status
}

pub fn clock_of(status: &tonic::Status) -> Option<u64> {
    status.metadata().get(CLOCK_KEY)?.to_str().ok()?.parse().ok()
}

pub fn certainly_not(status: &tonic::Status) -> bool {
    status.metadata().contains_key(NOT_DONE_KEY)
}
