//! Who may call which gRPC method: decided by the path and the certificate, before a byte of the request's body is read.
//!
//! What is not in the table nobody may call. The services check once more where it matters to them.

use coracle_proto::MESSAGE_BYTES_MAX;
use tonic::Status;

use crate::{
    authorization::may_call,
    identity::{Caller, former_member},
};

/// All gRPC services have paths of this form.
const GRPC_PREFIX: &str = "/coracle.";

/// The largest message of who joins: a token and a signing request.
pub const JOIN_BYTES_MAX: usize = 16 * 1024;

/// The largest message of a node. An object ends at 1.5 MiB, and a status is a part of one.
pub const NODE_MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Whom a method is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// A token in the message proves the caller.
    Joiners,
    Members,
    /// Administrators and members.
    Administrators,
    /// The same, and members that were removed: they are told so.
    Status,
    Nodes,
}

/// How the messages of a method come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One message, which the method has until it answers.
    One,
    /// Many, each of which is over when the next is asked for.
    Many,
}

pub fn is_grpc(path: &str) -> bool {
    path.starts_with(GRPC_PREFIX)
}

/// Whom the method of this path is for, and how its messages come; `None` where there is no such method.
pub fn method(path: &str) -> Option<(Audience, Shape)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let audience = match (service, method) {
        ("coracle.cluster.v1.Join", _) => Audience::Joiners,
        ("coracle.cluster.v1.Leader" | "coracle.raft.v1.RaftTransport" | "coracle.cluster.v1.Blobs", _) => {
            Audience::Members
        }
        ("coracle.cluster.v1.Cluster", "Status") => Audience::Status,
        ("coracle.security.v1.Security", "FetchKeys") => Audience::Members,
        ("coracle.security.v1.Security", "RenewCertificate" | "ConfirmTrust") => Audience::Nodes,
        ("coracle.node.v1.NodeLink", _) => Audience::Nodes,
        ("coracle.cluster.v1.Cluster" | "coracle.security.v1.Security" | "coracle.store.v1.Store", _) => {
            Audience::Administrators
        }
        _ => return None,
    };
    let many = matches!(
        (service, method),
        ("coracle.node.v1.NodeLink", "Link")
            | ("coracle.raft.v1.RaftTransport", "Send")
            | ("coracle.cluster.v1.Blobs", "Put")
    );
    Some((audience, if many { Shape::Many } else { Shape::One }))
}

impl Audience {
    /// Refuses who is not of it.
    #[allow(clippy::result_large_err, reason = "the error type of tonic services")]
    pub fn admit(self, caller: &Caller) -> Result<(), Status> {
        if may_call(&caller.user(), self) {
            return Ok(());
        }
        let who = match self {
            Self::Joiners => "everybody",
            Self::Members => "only control nodes",
            Self::Administrators | Self::Status => "only administrators (system:masters)",
            Self::Nodes => "only nodes",
        };
        Err(match caller {
            Caller::FormerMember(id) => former_member(*id),
            Caller::Anonymous => {
                Status::unauthenticated(format!("{who} may call this, with their client certificate"))
            }
            // Who asks to be linked or renewed shows a node's certificate, if any.
            _ => Status::permission_denied(format!("{who} may call this")),
        })
    }

    /// The largest message that is taken.
    pub fn message_bytes_max(self) -> usize {
        match self {
            Self::Joiners => JOIN_BYTES_MAX,
            Self::Nodes => NODE_MESSAGE_BYTES_MAX,
            Self::Members | Self::Administrators | Self::Status => MESSAGE_BYTES_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_api::UserInfo;

    use super::*;

    /// The paths of all methods, with the text of each declaration.
    fn declared() -> Vec<(String, String)> {
        let protos = [
            include_str!("../../../proto/raft.proto"),
            include_str!("../../../proto/cluster.proto"),
            include_str!("../../../proto/node.proto"),
            include_str!("../../../proto/security.proto"),
            include_str!("../../../proto/store.proto"),
        ];
        let mut found = vec![];
        for proto in protos {
            let (mut package, mut service) = ("", "");
            for line in proto.lines().map(str::trim) {
                if let Some(name) = line.strip_prefix("package ") {
                    package = name.trim_end_matches(';');
                } else if let Some(name) = line.strip_prefix("service ") {
                    service = name.trim_end_matches(" {");
                } else if let Some(rest) = line.strip_prefix("rpc ") {
                    let name = rest.split('(').next().unwrap_or("");
                    found.push((format!("/{package}.{service}/{name}"), rest.to_owned()));
                }
            }
        }
        found
    }

    fn client(user: &str, group: &str) -> Caller {
        Caller::Client(UserInfo::new(user, &[group]))
    }

    #[test]
    fn every_method_has_an_audience_and_its_shape() {
        let declared = declared();
        assert!(declared.len() > 25, "{declared:?}");
        for (path, text) in declared {
            assert!(is_grpc(&path));
            let (audience, shape) = method(&path).unwrap_or_else(|| panic!("{path} has no audience"));
            let asked = text.split(" returns ").next().unwrap();
            assert_eq!(shape == Shape::Many, asked.contains("(stream "), "{text}");
            let anonymous = audience.admit(&Caller::Anonymous).is_ok();
            assert_eq!(anonymous, path == "/coracle.cluster.v1.Join/Join", "{path}");
        }
        assert_eq!(method("/coracle.cluster.v1.Future/Call"), None);
    }

    #[test]
    fn a_method_serves_its_audience_only() {
        let (admin, node) = (client("a", "system:masters"), client("system:node:n", "system:nodes"));
        let unnamed = client("n", "system:nodes");
        let (member, former) = (Caller::Member(1), Caller::FormerMember(2));
        let everybody = [&admin, &node, &member, &former, &unnamed];
        for (path, admitted) in [
            ("/coracle.raft.v1.RaftTransport/Send", [false, false, true, false, false]),
            ("/coracle.store.v1.Store/Txn", [true, false, true, false, false]),
            ("/coracle.cluster.v1.Cluster/Status", [true, false, true, true, false]),
            ("/coracle.cluster.v1.Cluster/CreateToken", [true, false, true, false, false]),
            ("/coracle.security.v1.Security/FetchKeys", [false, false, true, false, false]),
            ("/coracle.security.v1.Security/RenewCertificate", [false, true, false, false, false]),
            ("/coracle.node.v1.NodeLink/Link", [false, true, false, false, false]),
        ] {
            let (audience, _) = method(path).unwrap();
            let found = everybody.map(|caller| audience.admit(caller).is_ok());
            assert_eq!(found, admitted, "{path}");
        }
    }
}
