//! A sole voter, whose election nobody else has a part in.

use super::*;

/// Else it could lose the term in a crash and lead it once more, with other entries under the same numbers.
#[test]
fn nobody_hears_of_a_sole_voters_term_before_it_is_durable() {
    let mut cluster = Cluster::new(&[1]);
    cluster.leader();
    cluster.start(2, MemoryDisk::new(), None);
    cluster.change(1, &[MemberChange::AddLearner(2)]);
    cluster.tick(5);
    let before = cluster.members[&2].core.status();

    cluster.stalled = true;
    cluster.crash(1);
    assert!(cluster.members[&1].core.is_leader(), "it leads at once");
    let lost = cluster.propose(1, "lost");
    cluster.tick(5);
    let heard = cluster.members[&2].core.status();
    assert_eq!((heard.term, heard.last), (before.term, before.last));
    assert_eq!(cluster.outcome(1, lost), None);

    cluster.stalled = false;
    cluster.crash(1);
    let kept = cluster.propose(1, "kept");
    cluster.tick(5);
    assert!(matches!(cluster.outcome(1, kept), Some(Ok(_))));
    assert_eq!(cluster.members[&2].applied, cluster.members[&1].applied);
}
