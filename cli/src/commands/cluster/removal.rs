//! Which removals of members want a second thought: after them no further voter may fail.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Result, bail};
use coracle_proto::cluster::Member;

/// Asks a person, and refuses a program, where a removal leaves fewer voters than is safe.
pub fn confirm(members: &[Member], removed: &[String]) -> Result<()> {
    let Some(warning) = warning(members, removed) else { return Ok(()) };
    if !std::io::stdin().is_terminal() {
        bail!("{warning}. Nothing was done: say --force if that is meant, or use `coracle cluster replace`");
    }
    eprint!("{warning}. Remove all the same? Type yes: ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() != "yes" {
        bail!("nothing was done");
    }
    Ok(())
}

/// What a removal leaves, where that is less than is safe.
fn warning(members: &[Member], removed: &[String]) -> Option<String> {
    let goes = |member: &Member| {
        removed.iter().any(|named| *named == member.name || *named == member.id.to_string())
    };
    if !members.iter().any(|member| member.voter && goes(member)) {
        return None;
    }
    let left: Vec<&Member> = members.iter().filter(|member| member.voter && !goes(member)).collect();
    let healthy = left.iter().filter(|member| member.healthy).count();
    let needed = left.len() / 2 + 1;
    // What cannot be at all the cluster refuses itself.
    (healthy <= needed).then(|| {
        let voters = if left.len() == 1 { "voter" } else { "voters" };
        format!(
            "this leaves {} {voters}, {healthy} of them healthy, of which {needed} must stay so: no further one may fail",
            left.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warns(members: &str, removed: &[&str]) -> bool {
        // `v` a voter, `d` a dead one, `l` a learner; their ids count from 1.
        let member = |(at, kind): (usize, char)| Member {
            id: at as u64 + 1,
            name: format!("c{}", at + 1),
            voter: kind != 'l',
            healthy: kind != 'd',
            ..Member::default()
        };
        let members: Vec<Member> = members.chars().enumerate().map(member).collect();
        let removed: Vec<String> = removed.iter().map(ToString::to_string).collect();
        warning(&members, &removed).is_some()
    }

    #[test]
    fn a_removal_is_safe_while_another_voter_may_fail_afterwards() {
        for (members, removed, expected) in [
            ("vvvvv", &["c4", "c5"][..], false),
            ("vvvvv", &["5"], false),
            ("vvv", &["c3"], true),
            ("vvv", &["2", "3"], true),
            ("vvd", &["c3"], true),
            ("vv", &["c2"], true),
            ("vvvdv", &["c5"], true),
            ("vvvvd", &["c5"], false),
            ("vvvl", &["c4"], false),
            ("vvvl", &["nobody"], false),
        ] {
            assert_eq!(warns(members, removed), expected, "{members} without {removed:?}");
        }
    }
}
