//! Messages between members: the prost twin on the wire, raft-rs' own type inside, and what is let in.
//!
//! The protobuf 2 parser that raft-rs brings never sees a byte from the network, and raft-rs panics at some messages
//! that no sound member sends. So each message is checked here before it is stepped.

use bytes::Bytes;
use coracle_proto::raft as wire;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot, SnapshotMetadata};

use crate::membership;
use crate::snapshot::format::decode_marker;
use crate::wal::SnapshotMarker;

/// Indices, terms and ids beyond this are taken for garbage: raft-rs adds to them without a check.
const NUMBER_MAX: u64 = 1 << 62;

/// Why a message was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("message type {0} is unknown or never sent between members")]
    Type(i32),
    #[error("the message is addressed to member {0}")]
    Addressee(u64),
    #[error("the sender's id {0} is impossible")]
    Sender(u64),
    #[error("the message carries no term")]
    NoTerm,
    #[error("a number in the message is out of range")]
    Number,
    #[error("the entries do not follow each other, or do not belong into such a message")]
    Entries,
    #[error("an entry's type is unknown, or its change of members cannot be read")]
    EntryType,
    #[error("the snapshot is not described as it should be, or does not belong into such a message")]
    Snapshot,
    #[error("the message is of no use to a member in this state")]
    OutOfPlace,
}

/// Turns raft-rs' message into its wire twin.
pub fn to_wire(mut message: Message) -> wire::Message {
    let entries = message.take_entries().into_vec().into_iter().map(entry_to_wire).collect();
    wire::Message {
        msg_type: message.msg_type as i32,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries,
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot: message.snapshot.take().map(snapshot_to_wire),
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        deprecated_priority: message.deprecated_priority,
        priority: message.priority,
    }
}

/// Turns a wire message into raft-rs' own, where it may come from another member.
pub fn from_wire(message: wire::Message, self_id: u64) -> Result<Message, Refused> {
    let kind = accepted_type(message.msg_type).ok_or(Refused::Type(message.msg_type))?;
    check(&message, kind, self_id)?;
    let entries = message.entries.into_iter().map(entry_from_wire).collect::<Result<Vec<_>, _>>()?;
    Ok(Message {
        msg_type: kind,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: entries.into(),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot: message.snapshot.map(snapshot_from_wire).into(),
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        deprecated_priority: message.deprecated_priority,
        priority: message.priority,
        ..Message::default()
    })
}

/// The types that members send each other. Proposals and reads are not forwarded at this level, and the rest is a
/// member's talk to itself.
fn accepted_type(number: i32) -> Option<MessageType> {
    let kind = match wire::MessageType::try_from(number).ok()? {
        wire::MessageType::MsgAppend => MessageType::MsgAppend,
        wire::MessageType::MsgAppendResponse => MessageType::MsgAppendResponse,
        wire::MessageType::MsgRequestVote => MessageType::MsgRequestVote,
        wire::MessageType::MsgRequestVoteResponse => MessageType::MsgRequestVoteResponse,
        wire::MessageType::MsgSnapshot => MessageType::MsgSnapshot,
        wire::MessageType::MsgHeartbeat => MessageType::MsgHeartbeat,
        wire::MessageType::MsgHeartbeatResponse => MessageType::MsgHeartbeatResponse,
        wire::MessageType::MsgTimeoutNow => MessageType::MsgTimeoutNow,
        wire::MessageType::MsgRequestPreVote => MessageType::MsgRequestPreVote,
        wire::MessageType::MsgRequestPreVoteResponse => MessageType::MsgRequestPreVoteResponse,
        wire::MessageType::MsgHup
        | wire::MessageType::MsgBeat
        | wire::MessageType::MsgPropose
        | wire::MessageType::MsgUnreachable
        | wire::MessageType::MsgSnapStatus
        | wire::MessageType::MsgCheckQuorum
        | wire::MessageType::MsgTransferLeader
        | wire::MessageType::MsgReadIndex
        | wire::MessageType::MsgReadIndexResp => return None,
    };
    Some(kind)
}

fn check(message: &wire::Message, kind: MessageType, self_id: u64) -> Result<(), Refused> {
    if message.to != self_id {
        return Err(Refused::Addressee(message.to));
    }
    if message.from == 0 || message.from == self_id || message.from >= NUMBER_MAX {
        return Err(Refused::Sender(message.from));
    }
    // Raft takes a message without a term for one of its own.
    if message.term == 0 {
        return Err(Refused::NoTerm);
    }
    let numbers = [
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.reject_hint,
        message.deprecated_priority,
    ];
    if numbers.iter().any(|number| *number >= NUMBER_MAX) {
        return Err(Refused::Number);
    }
    // No member asks for a snapshot: the leader sees by itself who needs one.
    if message.snapshot.is_some() != (kind == MessageType::MsgSnapshot) || message.request_snapshot != 0 {
        return Err(Refused::Snapshot);
    }
    match kind {
        MessageType::MsgAppend => check_entries(message),
        MessageType::MsgSnapshot => check_snapshot(message),
        _ if message.entries.is_empty() => Ok(()),
        _ => Err(Refused::Entries),
    }
}

fn check_entries(message: &wire::Message) -> Result<(), Refused> {
    let mut before = (message.index, message.log_term);
    // Raft-rs takes an index beyond its log for one of term 0.
    if before.1 > message.term || (before.0 == 0) != (before.1 == 0) {
        return Err(Refused::Entries);
    }
    for entry in &message.entries {
        let in_order =
            entry.index == before.0 + 1 && entry.term >= before.1.max(1) && entry.term <= message.term;
        if !in_order || entry.index >= NUMBER_MAX {
            return Err(Refused::Entries);
        }
        before = (entry.index, entry.term);
    }
    Ok(())
}

/// The data describes the snapshot once more, and more fully than the metadata that raft reads.
fn check_snapshot(message: &wire::Message) -> Result<(), Refused> {
    let snapshot = message.snapshot.as_ref().ok_or(Refused::Snapshot)?;
    let marker = decode_marker(&snapshot.data).ok_or(Refused::Snapshot)?;
    let described = marker_to_wire(&marker);
    let sound = marker.index > 0
        && marker.index < NUMBER_MAX
        && (1..=message.term).contains(&marker.term)
        && !marker.conf_state.voters.is_empty()
        && snapshot.metadata.as_ref() == Some(&described)
        && message.entries.is_empty();
    sound.then_some(()).ok_or(Refused::Snapshot)
}

fn marker_to_wire(marker: &SnapshotMarker) -> wire::SnapshotMetadata {
    let state = &marker.conf_state;
    wire::SnapshotMetadata {
        conf_state: Some(wire::ConfState {
            voters: state.voters.clone(),
            learners: state.learners.clone(),
            voters_outgoing: state.voters_outgoing.clone(),
            learners_next: state.learners_next.clone(),
            auto_leave: state.auto_leave,
        }),
        index: marker.index,
        term: marker.term,
    }
}

fn entry_to_wire(entry: Entry) -> wire::Entry {
    wire::Entry {
        entry_type: entry.entry_type as i32,
        term: entry.term,
        index: entry.index,
        data: entry.data,
        context: entry.context,
        sync_log: entry.sync_log,
    }
}

fn entry_from_wire(entry: wire::Entry) -> Result<Entry, Refused> {
    let entry_type = match wire::EntryType::try_from(entry.entry_type) {
        Ok(wire::EntryType::EntryNormal) => EntryType::EntryNormal,
        Ok(wire::EntryType::EntryConfChangeV2) if membership::decode(&entry.data).is_some() => {
            EntryType::EntryConfChangeV2
        }
        _ => return Err(Refused::EntryType),
    };
    Ok(Entry {
        entry_type,
        term: entry.term,
        index: entry.index,
        // Copied: the log keeps entries for long, and these bytes are a slice of the whole received batch.
        data: Bytes::copy_from_slice(&entry.data),
        context: Bytes::copy_from_slice(&entry.context),
        sync_log: entry.sync_log,
        ..Entry::default()
    })
}

fn snapshot_to_wire(mut snapshot: Snapshot) -> wire::Snapshot {
    let metadata = snapshot.metadata.take().map(|mut metadata| wire::SnapshotMetadata {
        conf_state: metadata.conf_state.take().map(|state| wire::ConfState {
            voters: state.voters,
            learners: state.learners,
            voters_outgoing: state.voters_outgoing,
            learners_next: state.learners_next,
            auto_leave: state.auto_leave,
        }),
        index: metadata.index,
        term: metadata.term,
    });
    wire::Snapshot { data: snapshot.data, metadata }
}

fn snapshot_from_wire(snapshot: wire::Snapshot) -> Snapshot {
    let metadata = snapshot.metadata.map(|metadata| {
        let conf_state = metadata.conf_state.map(|state| ConfState {
            voters: state.voters,
            learners: state.learners,
            voters_outgoing: state.voters_outgoing,
            learners_next: state.learners_next,
            auto_leave: state.auto_leave,
            ..ConfState::default()
        });
        SnapshotMetadata {
            conf_state: conf_state.into(),
            index: metadata.index,
            term: metadata.term,
            ..SnapshotMetadata::default()
        }
    });
    Snapshot {
        data: Bytes::copy_from_slice(&snapshot.data),
        metadata: metadata.into(),
        ..Snapshot::default()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use protobuf::Message as _;

    use super::*;

    fn append() -> Message {
        let entry = |index, term| Entry { index, term, data: vec![7; 9].into(), ..Entry::default() };
        Message {
            msg_type: MessageType::MsgAppend,
            to: 1,
            from: 2,
            term: 5,
            log_term: 3,
            index: 10,
            entries: vec![entry(11, 3), entry(12, 5)].into(),
            commit: 10,
            commit_term: 3,
            reject_hint: 4,
            context: vec![1, 2].into(),
            priority: -1,
            ..Message::default()
        }
    }

    #[test]
    fn the_twin_has_the_same_bytes_and_survives_the_round() {
        let mut message = append();
        message.reject = true;
        let twin = to_wire(message.clone());
        // The decoders read each other's bytes to the same values.
        let reread = wire::Message::decode(&message.write_to_bytes().expect("encodes")[..]).expect("decodes");
        assert_eq!(reread, twin);
        let mut back = Message::default();
        back.merge_from_bytes(&twin.encode_to_vec()).expect("decodes");
        back.set_entries(message.entries.clone());
        assert_eq!(back.index, message.index);
        assert_eq!(from_wire(twin, 1), Ok(message));
    }

    #[test]
    fn a_snapshot_survives_the_round() {
        let state =
            ConfState { voters: vec![1], learners_next: vec![4], auto_leave: true, ..ConfState::default() };
        let metadata = SnapshotMetadata {
            conf_state: Some(state).into(),
            index: 8,
            term: 2,
            ..SnapshotMetadata::default()
        };
        let snapshot =
            Snapshot { data: vec![1].into(), metadata: Some(metadata).into(), ..Snapshot::default() };
        assert_eq!(snapshot_from_wire(snapshot_to_wire(snapshot.clone())), snapshot);
    }

    #[test]
    fn what_no_sound_member_sends_is_refused() {
        let good = to_wire(append());
        let check = |change: &dyn Fn(&mut wire::Message), refused: Refused| {
            let mut bad = good.clone();
            change(&mut bad);
            assert_eq!(from_wire(bad, 1), Err(refused));
        };
        for kind in [0, 1, 2, 10, 11, 12, 13, 15, 16, 77, -1] {
            check(&|m| m.msg_type = kind, Refused::Type(kind));
        }
        check(&|m| m.to = 3, Refused::Addressee(3));
        check(&|m| m.from = 0, Refused::Sender(0));
        check(&|m| m.from = 1, Refused::Sender(1));
        check(&|m| m.term = 0, Refused::NoTerm);
        check(&|m| m.index = u64::MAX, Refused::Number);
        check(&|m| m.commit = u64::MAX, Refused::Number);
        check(&|m| m.entries[1].index = 13, Refused::Entries);
        check(&|m| m.entries[0].term = 2, Refused::Entries);
        check(&|m| m.entries[1].term = 6, Refused::Entries);
        check(&|m| m.log_term = 6, Refused::Entries);
        check(&|m| m.log_term = 0, Refused::Entries);
        check(&|m| m.msg_type = wire::MessageType::MsgHeartbeat as i32, Refused::Entries);
        check(&|m| m.entries[0].entry_type = 1, Refused::EntryType);
        check(&|m| m.entries[0].entry_type = 2, Refused::EntryType);
        check(&|m| m.request_snapshot = 1, Refused::Snapshot);
        check(&|m| m.snapshot = Some(wire::Snapshot::default()), Refused::Snapshot);
    }
}
