//! `coracle cluster`: the control members, how they are, and changes of them.

mod removal;

use anyhow::Result;
use coracle_proto::cluster::{
    CertificateReport, Member, MemberRequest, ReplaceRequest, StatusRequest, StatusResponse,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    args::ClusterCommand,
    client::Cluster,
    commands::security,
    output::{self, align},
};

pub async fn run(command: &ClusterCommand) -> Result<()> {
    match command {
        ClusterCommand::Status { format, connection } => {
            let status = status(&Cluster::find(connection)?).await?;
            match format.output {
                None => output::text(&text(&status, Timestamp::now()))?,
                Some(format) => output::value(&as_json(&status), format)?,
            }
        }
        ClusterCommand::Members { format, connection } => {
            let status = status(&Cluster::find(connection)?).await?;
            match format.output {
                None => output::text(&members(&status.members))?,
                Some(format) => output::value(&as_json(&status)["members"], format)?,
            }
        }
        ClusterCommand::Promote { members, connection } => {
            let request = MemberRequest { members: members.clone() };
            let cluster = Cluster::find(connection)?;
            let done = cluster.administer(|mut client| {
                let request = request.clone();
                async move { client.promote(request).await }
            });
            output::line(done.await?.done)?;
        }
        ClusterCommand::Remove { members, force, connection } => {
            let request = MemberRequest { members: members.clone() };
            let cluster = Cluster::find(connection)?;
            if !force {
                removal::confirm(&status(&cluster).await?.members, members)?;
            }
            let done = cluster.administer(|mut client| {
                let request = request.clone();
                async move { client.remove(request).await }
            });
            output::line(done.await?.done)?;
        }
        ClusterCommand::Replace { old, new, connection } => {
            let request = ReplaceRequest { old: old.clone(), new: new.clone() };
            let cluster = Cluster::find(connection)?;
            let done = cluster.administer(|mut client| {
                let request = request.clone();
                async move { client.replace(request).await }
            });
            output::line(done.await?.done)?;
        }
        ClusterCommand::TransferLeader { member, connection } => {
            let request = MemberRequest { members: vec![member.clone()] };
            let cluster = Cluster::find(connection)?;
            let done = cluster.administer(|mut client| {
                let request = request.clone();
                async move { client.transfer_leader(request).await }
            });
            output::line(done.await?.done)?;
        }
        ClusterCommand::Security(command) => security::run(command).await?,
    }
    Ok(())
}

pub async fn status(cluster: &Cluster) -> Result<StatusResponse> {
    let question = || StatusRequest { reports: true, ..StatusRequest::default() };
    cluster.administer(|mut client| async move { client.status(question()).await }).await
}

fn text(status: &StatusResponse, now: Timestamp) -> String {
    let leader = match status.leader_id {
        0 => format!("none (term {})", status.term),
        id => format!("member {id} in term {}", status.term),
    };
    let cluster_version = match status.cluster_version.as_str() {
        "" => "not agreed on yet".to_owned(),
        version => format!("{version} (level {})", status.entry_format),
    };
    let mut lines = vec![
        ("cluster", status.cluster_id.clone()),
        ("version", cluster_version),
        ("health", health(&status.members)),
        ("leader", leader),
        (
            "committed",
            format!(
                "{} (member {} has applied {})",
                status.commit_index, status.member_id, status.applied_index
            ),
        ),
        ("revision", status.revision.to_string()),
        ("state hash", status.state_hash.clone()),
        ("authorities", authorities(status, now)),
    ];
    if status.alarms.is_empty() {
        lines.push(("alarms", "none".into()));
    }
    let mut text: String = lines.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect();
    for alarm in &status.alarms {
        let whose =
            if alarm.member_id == 0 { String::new() } else { format!(" of member {}", alarm.member_id) };
        text += &format!("ALARM       {}{whose}: {}\n", alarm.reason, alarm.message);
    }
    format!("{text}\n{}\n{}", members(&status.members), reports(&status.members, now))
}

/// How many voters there are, and how many may fail.
fn health(members: &[Member]) -> String {
    let voters: Vec<&Member> = members.iter().filter(|member| member.voter).collect();
    let healthy = voters.iter().filter(|member| member.healthy).count();
    let needed = voters.len() / 2 + 1;
    let outlook = if !members.iter().any(|member| member.leader) {
        "nothing can be written now".to_owned()
    } else {
        match healthy.saturating_sub(needed) {
            0 => "no further one may fail".to_owned(),
            1 => "1 may fail".to_owned(),
            more => format!("{more} may fail"),
        }
    };
    format!("{healthy} of {} voters healthy, {outlook}", voters.len())
}

/// How far a change of the certificate authorities is; without one how old they are, and which ends first.
fn authorities(status: &StatusResponse, now: Timestamp) -> String {
    if let Some(change) = &status.authorities_change {
        let step = security::ca_step(&change.authorities.join(", "), &change.stage);
        let mut done = format!("{} of {} control nodes", change.members_done, change.members);
        if change.nodes > 0 {
            done += &format!(" and {} of {} nodes", change.nodes_done, change.nodes);
        }
        return format!("{step}, {done} are there; see `coracle cluster ca`");
    }
    let reports = status.members.iter().filter_map(|member| member.report.as_ref());
    let known: Vec<_> =
        reports.flat_map(|report| &report.certificates).filter(|one| is_authority(one)).collect();
    match known.iter().map(|authority| now.as_second() - authority.not_before_unix).max() {
        Some(age) => format!("{} old, the first ends: {}", period(age), first_end(&known, now)),
        None => "?".into(),
    }
}

fn is_authority(certificate: &CertificateReport) -> bool {
    certificate.name.ends_with(" CA")
}

fn role(member: &Member) -> &'static str {
    match (member.leader, member.voter) {
        (true, _) => "leader",
        (false, true) => "voter",
        (false, false) => "learner",
    }
}

fn members(members: &[Member]) -> String {
    let head = ["ID", "NAME", "ADDRESS", "ROLE", "HEALTHY", "LAG", "VERSION"];
    let mut lines = vec![head.map(String::from).to_vec()];
    for member in members {
        lines.push(vec![
            member.id.to_string(),
            member.name.clone(),
            member.address.clone(),
            role(member).into(),
            if member.healthy { "yes" } else { "no" }.into(),
            member.lag_entries.to_string(),
            if member.version.is_empty() { "?".into() } else { member.version.clone() },
        ]);
    }
    align(&lines)
}

/// What the members said of their disks and certificates.
fn reports(members: &[Member], now: Timestamp) -> String {
    let head = ["ID", "DISK USED", "DISK FREE", "CERTIFICATE AGE", "FIRST ENDS", "CA ENDS"];
    let mut lines = vec![head.map(String::from).to_vec()];
    for member in members {
        let mut line = vec![member.id.to_string()];
        match &member.report {
            Some(report) => {
                let (authorities, leaves): (Vec<_>, Vec<_>) =
                    report.certificates.iter().partition(|certificate| is_authority(certificate));
                let oldest = leaves.iter().map(|leaf| now.as_second() - leaf.not_before_unix).max();
                line.extend([bytes(report.disk_used_bytes), bytes(report.disk_free_bytes)]);
                line.push(oldest.map_or("?".into(), period));
                line.extend([first_end(&leaves, now), first_end(&authorities, now)]);
            }
            None => line.extend(["(no answer)".to_owned()]),
        }
        lines.push(line);
    }
    align(&lines)
}

fn first_end(certificates: &[&CertificateReport], now: Timestamp) -> String {
    let first = certificates.iter().min_by_key(|certificate| certificate.not_after_unix);
    first.map_or("?".into(), |first| {
        format!("{} in {}", first.name, period(first.not_after_unix - now.as_second()))
    })
}

/// A size in its largest whole unit.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut shown = count as f64;
    while shown >= 1024.0 && unit + 1 < UNITS.len() {
        shown /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{shown:.1} {}", UNITS[unit]) }
}

fn period(seconds: i64) -> String {
    match seconds {
        ..0 => format!("-{}", period(seconds.saturating_neg())),
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn as_json(status: &StatusResponse) -> Value {
    let members: Vec<Value> = status
        .members
        .iter()
        .map(|member| {
            let report = member.report.as_ref().map(|report| {
                let certificates = report.certificates.iter().map(|certificate| {
                    json!({
                        "name": certificate.name,
                        "notBeforeUnix": certificate.not_before_unix,
                        "notAfterUnix": certificate.not_after_unix,
                    })
                });
                json!({
                    "appliedIndex": report.applied_index,
                    "diskUsedBytes": report.disk_used_bytes,
                    "diskFreeBytes": report.disk_free_bytes,
                    "certificates": certificates.collect::<Vec<_>>(),
                })
            });
            json!({
                "id": member.id,
                "name": member.name,
                "address": member.address,
                "role": role(member),
                "voter": member.voter,
                "healthy": member.healthy,
                "matchedIndex": member.matched_index,
                "lagEntries": member.lag_entries,
                "version": member.version,
                "entryFormat": member.entry_format,
                "report": report,
            })
        })
        .collect();
    let alarms = status.alarms.iter().map(
        |alarm| json!({ "reason": alarm.reason, "memberId": alarm.member_id, "message": alarm.message }),
    );
    let authorities_change = status.authorities_change.as_ref().map(|change| {
        json!({
            "authorities": change.authorities,
            "stage": change.stage,
            "beganUnix": change.began_unix,
            "graceSeconds": change.grace_seconds,
            "members": change.members,
            "membersDone": change.members_done,
            "nodes": change.nodes,
            "nodesDone": change.nodes_done,
        })
    });
    json!({
        "clusterId": status.cluster_id,
        "clusterVersion": status.cluster_version,
        "entryFormat": status.entry_format,
        "answeredBy": status.member_id,
        "leaderId": status.leader_id,
        "term": status.term,
        "commitIndex": status.commit_index,
        "appliedIndex": status.applied_index,
        "revision": status.revision,
        "stateHash": status.state_hash,
        "authoritiesChange": authorities_change,
        "alarms": alarms.collect::<Vec<_>>(),
        "members": members,
    })
}

#[cfg(test)]
mod tests {
    use coracle_proto::cluster::{Alarm, AuthoritiesChange, MemberReport};

    use super::*;

    fn member(id: u64, voter: bool, healthy: bool) -> Member {
        Member { id, name: format!("c{id}"), voter, healthy, leader: id == 1, ..Member::default() }
    }

    #[test]
    fn health_says_how_many_may_fail() {
        let all =
            [member(1, true, true), member(2, true, true), member(3, true, true), member(4, false, false)];
        assert_eq!(health(&all), "3 of 3 voters healthy, 1 may fail");
        let one_less = [member(1, true, true), member(2, true, true), member(3, true, false)];
        assert_eq!(health(&one_less), "2 of 3 voters healthy, no further one may fail");
        let none = [member(2, true, false)];
        assert_eq!(health(&none), "0 of 1 voters healthy, nothing can be written now");
    }

    #[test]
    fn sizes_and_periods_are_readable() {
        assert_eq!([bytes(17), bytes(1536), bytes(3 << 30)], ["17 B", "1.5 KiB", "3.0 GiB"]);
        assert_eq!(
            [period(5), period(600), period(7200), period(90 * 86_400)],
            ["5 s", "10 min", "2 h", "90 days"]
        );
        assert_eq!(period(-86_400 * 3), "-3 days");
    }

    #[test]
    fn the_status_tells_of_alarms_and_of_members_that_do_not_answer() {
        let leaf = CertificateReport { name: "peer".into(), not_before_unix: 0, not_after_unix: 864_000 };
        let report =
            MemberReport { disk_used_bytes: 2048, certificates: vec![leaf], ..MemberReport::default() };
        let status = StatusResponse {
            leader_id: 1,
            term: 3,
            members: vec![Member { report: Some(report), ..member(1, true, true) }, member(2, true, false)],
            alarms: vec![Alarm { reason: "MemberDead".into(), member_id: 2, message: "mend it".into() }],
            ..StatusResponse::default()
        };
        let text = text(&status, Timestamp::UNIX_EPOCH);
        assert!(text.contains("leader      member 1 in term 3\n"), "{text}");
        assert!(text.contains("ALARM       MemberDead of member 2: mend it\n"), "{text}");
        assert!(
            text.contains("2.0 KiB") && text.contains("peer in 10 days") && text.contains("(no answer)"),
            "{text}"
        );
        assert_eq!(as_json(&status)["members"][1]["report"], Value::Null);
    }

    #[test]
    fn the_status_tells_how_far_a_change_of_authorities_is_or_how_old_they_are() {
        let day = 86_400;
        let authority = |name: &str, born: i64, ends: i64| CertificateReport {
            name: name.into(),
            not_before_unix: born * day,
            not_after_unix: ends * day,
        };
        let certificates = vec![
            authority("serving", 9, 11),
            authority("serving CA", 0, 3650),
            authority("peer CA", 7, 3657),
        ];
        let report = MemberReport { certificates, ..MemberReport::default() };
        let mut status = StatusResponse {
            members: vec![Member { report: Some(report), ..member(1, true, true) }],
            ..StatusResponse::default()
        };
        let line = |status: &StatusResponse| {
            let text = text(status, Timestamp::from_second(10 * day).unwrap());
            text.lines().find_map(|line| line.strip_prefix("authorities ").map(str::to_owned)).unwrap()
        };
        assert_eq!(line(&status), "10 days old, the first ends: serving CA in 3640 days");
        assert_eq!(as_json(&status)["authoritiesChange"], Value::Null);
        let mut change = AuthoritiesChange {
            authorities: vec!["peer".into(), "serving".into()],
            stage: "trusting".into(),
            members: 3,
            members_done: 2,
            nodes: 5,
            nodes_done: 4,
            ..AuthoritiesChange::default()
        };
        status.authorities_change = Some(change.clone());
        assert_eq!(
            line(&status),
            "step 1 of 2: the new authorities (peer, serving) become trusted, 2 of 3 control nodes and 4 of 5 nodes \
             are there; see `coracle cluster ca`"
        );
        assert_eq!(as_json(&status)["authoritiesChange"]["membersDone"], 2);
        change.nodes = 0;
        change.stage = "issuing".into();
        status.authorities_change = Some(change);
        assert!(line(&status).contains("2 of 3 control nodes are there"), "{}", line(&status));
        assert_eq!(line(&StatusResponse::default()), "?");
    }
}
