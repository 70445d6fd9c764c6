//! What the cluster's status is made of: what raft and the store know, what each member says of itself, and what of it
//! a person should mend.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path, sync::Arc, time::Duration};

use coracle_objects::{ObjectKey, View};
use coracle_pki::Authorities;
use coracle_proto::cluster::{
    Alarm, AuthoritiesChange, CertificateReport, Member, MemberReport, ReportRequest,
    cluster_client::ClusterClient,
};
use coracle_proto::tls;
use coracle_storage::{ReplicatedStorage, health, peers::MEMBERS};
use jiff::Timestamp;

use super::changes::within;
use crate::{
    certificates::{TrustState, Waiting},
    error::ServerError,
    membership::keeper,
};

/// Until another member must have reported.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// A file system with less than this left is told, in bytes.
const DISK_FREE_BYTES_LOW: u64 = 512 * 1024 * 1024;

/// A certificate that ends within this time is told: it should have been renewed long before.
const CERTIFICATE_SECONDS_LOW: i64 = 15 * 24 * 3600;

/// The certificates that this member shows and signs with now.
pub type Certificates = Arc<dyn Fn() -> Vec<CertificateReport> + Send + Sync>;

/// What this member knows of itself.
pub async fn own_report(
    storage: &ReplicatedStorage,
    data_dir: &Path,
    certificates: &Certificates,
) -> MemberReport {
    let data_dir = data_dir.to_owned();
    let disk = tokio::task::spawn_blocking(move || (used_bytes(&data_dir), free_bytes(&data_dir)));
    let (used, free) = disk.await.unwrap_or((0, 0));
    MemberReport {
        applied_index: storage.status().applied,
        disk_used_bytes: used,
        disk_free_bytes: free,
        certificates: certificates(),
    }
}

/// Fills in what the members say of themselves; those that do not answer soon stay without.
pub async fn ask_all(storage: &ReplicatedStorage, members: &mut [Member], own: MemberReport) {
    let reports = members.iter().map(|member| {
        let channel = storage.peers().channel(member.id).filter(|_| member.id != storage.member());
        async move {
            let mut client = ClusterClient::new(channel?);
            let answer = within(REPORT_TIMEOUT, client.report(ReportRequest {})).await?;
            Some(answer.into_inner())
        }
    });
    let reports = futures::future::join_all(reports).await;
    for (member, report) in members.iter_mut().zip(reports) {
        member.report = if member.id == storage.member() { Some(own.clone()) } else { report };
    }
}

/// How far a change of authorities is, as far as this member knows; `None` where none is under way.
pub fn authorities_change(storage: &ReplicatedStorage, view: &View) -> Option<AuthoritiesChange> {
    let trust = TrustState::read(view)?;
    let stage = trust.changing.values().next()?;
    let waiting = Waiting::read(storage, view, &trust);
    Some(AuthoritiesChange {
        authorities: trust.changing.keys().map(|name| name.as_str().to_owned()).collect(),
        stage: stage.as_str().to_owned(),
        began_unix: trust.began_unix,
        grace_seconds: trust.grace_seconds,
        members: waiting.members_all as u64,
        members_done: waiting.members_all.saturating_sub(waiting.members.len()) as u64,
        nodes: waiting.nodes_all as u64,
        nodes_done: waiting.nodes_all.saturating_sub(waiting.nodes.len()) as u64,
    })
}

/// What a person should mend.
pub fn alarms(view: &View, members: &[Member], reported: bool, now: Timestamp) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    let mut tell = |reason: &str, member_id: u64, message: String| {
        alarms.push(Alarm { reason: reason.into(), member_id, message });
    };
    if !members.iter().any(|member| member.leader) {
        let mend = "start the others; where they have new addresses since, each with --join HOST:PORT of another; if they \
                    are lost for good, see `coracle recover`";
        tell(
            "NoLeader",
            0,
            format!("no member leads: nothing can be written. Without a quorum of voters, {mend}"),
        );
    }
    for member in members {
        let object = view.get(&ObjectKey::new(MEMBERS, "", &member.id.to_string()));
        if object.is_none() && view.count(MEMBERS) > 0 {
            let mend = "a learner is removed by itself after a minute; otherwise `coracle cluster remove`";
            tell(
                "NoObject",
                member.id,
                format!("it belongs to the cluster but has no Member object; {mend}"),
            );
        }
        if let Some((since, message)) = object.and_then(|object| keeper::dead_since(object)) {
            let mend = "bring it back, or join a new control node, which takes its place, or remove it";
            tell("MemberDead", member.id, format!("since {since}: {message}; {mend}"));
        }
        if let Some(report) = &member.report {
            member_alarms(member.id, report, now, &mut tell);
        } else if reported && member.healthy {
            tell("NoReport", member.id, "it is healthy, but did not say how it is in time".into());
        }
    }
    let voters = members.iter().filter(|member| member.voter).count();
    if voters > 0 && voters % 2 == 0 {
        let mend = "join one more control node, or remove one";
        tell(
            "EvenVoters",
            0,
            format!("{voters} voters survive no more failures than {}; {mend}", voters - 1),
        );
    }
    alarms
}

/// Members have different states, and nobody knows which is right.
pub fn disputed(index: u64) -> Alarm {
    Alarm { reason: "StatesDiffer".into(), member_id: 0, message: health::disputed_message(index) }
}

fn member_alarms(id: u64, report: &MemberReport, now: Timestamp, tell: &mut impl FnMut(&str, u64, String)) {
    if report.disk_free_bytes < DISK_FREE_BYTES_LOW {
        let left = report.disk_free_bytes / (1024 * 1024);
        tell(
            "DiskLow",
            id,
            format!("{left} MiB are left on the file system of its data directory; make room"),
        );
    }
    for certificate in &report.certificates {
        let left = certificate.not_after_unix - now.as_second();
        if left < CERTIFICATE_SECONDS_LOW {
            let days = left / (24 * 3600);
            let name = &certificate.name;
            let mend = match name.ends_with("CA") {
                true => "change it with `coracle cluster rotate-ca`",
                false => "it should have been renewed: the member's log says why not",
            };
            let message = format!("its certificate `{name}` ends in {days} days; {mend}");
            tell("CertificateEnds", id, message);
        }
    }
}

/// The age and end of a certificate: the first one of a PEM text.
pub fn certificate(name: &str, pem: &str) -> Result<CertificateReport, ServerError> {
    let der = tls::certificates(pem, "certificate")?.remove(0);
    let (_, parsed) = x509_parser::parse_x509_certificate(&der)
        .map_err(|_| tls::TlsError::Empty { what: "certificate" })?;
    Ok(CertificateReport {
        name: name.into(),
        not_before_unix: parsed.validity().not_before.timestamp(),
        not_after_unix: parsed.validity().not_after.timestamp(),
    })
}

/// The three CAs.
pub fn authorities(authorities: &Authorities) -> Result<Vec<CertificateReport>, ServerError> {
    Ok(vec![
        certificate("serving CA", &authorities.serving.certificate_pem)?,
        certificate("peer CA", &authorities.peer.certificate_pem)?,
        certificate("client CA", &authorities.client.certificate_pem)?,
    ])
}

/// Bytes that the files of a folder take on disk. What vanishes meanwhile is not counted.
fn used_bytes(folder: &Path) -> u64 {
    let sum = |entries: fs::ReadDir| -> u64 {
        let sizes = entries.flatten().map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => used_bytes(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_) => 0,
        });
        sizes.sum()
    };
    fs::read_dir(folder).map(sum).unwrap_or(0)
}

/// Bytes that are left for us on the folder's file system; 0 also where that cannot be told, which is as bad.
fn free_bytes(folder: &Path) -> u64 {
    let found = rustix::fs::statvfs(folder).map_err(io::Error::from);
    found.map_or(0, |found| found.f_bavail * found.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, voter: bool) -> Member {
        Member { id, voter, healthy: true, leader: id == 1, ..Member::default() }
    }

    fn reasons(members: &[Member], reported: bool) -> Vec<(String, u64)> {
        let alarms = alarms(&View::default(), members, reported, Timestamp::UNIX_EPOCH);
        alarms.into_iter().map(|alarm| (alarm.reason, alarm.member_id)).collect()
    }

    #[test]
    fn what_is_wrong_is_told() {
        assert_eq!(reasons(&[member(1, true)], false), []);
        assert_eq!(reasons(&[member(1, true), member(2, false)], false), []);
        assert_eq!(reasons(&[member(1, true), member(2, true)], false), [("EvenVoters".into(), 0)]);
        assert_eq!(reasons(&[member(2, true)], true), [("NoLeader".into(), 0), ("NoReport".into(), 2)]);
        let ends =
            |days: i64| CertificateReport { not_after_unix: days * 86400, ..CertificateReport::default() };
        let report = MemberReport {
            disk_free_bytes: 0,
            certificates: vec![ends(14), ends(60)],
            ..MemberReport::default()
        };
        let one = Member { report: Some(report), ..member(1, true) };
        assert_eq!(reasons(&[one], true), [("DiskLow".into(), 1), ("CertificateEnds".into(), 1)]);
    }

    #[test]
    fn a_folder_takes_what_its_files_take() {
        let dir = tempfile::tempdir().unwrap();
        let empty = used_bytes(dir.path());
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/file"), vec![1; 100_000]).unwrap();
        assert!(used_bytes(dir.path()) >= empty + 100_000);
        assert!(free_bytes(dir.path()) > 0);
        assert_eq!(used_bytes(&dir.path().join("none")), 0);
    }

    #[test]
    fn certificates_are_read() {
        let made = Authorities::generate("c").unwrap();
        let reports = authorities(&made).unwrap();
        assert_eq!(reports.len(), 3);
        assert!(
            reports.iter().all(|report| report.not_after_unix - report.not_before_unix > 9 * 365 * 86400)
        );
        assert!(certificate("x", "nonsense").is_err());
    }
}
