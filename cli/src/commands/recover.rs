//! `coracle recover`: a cluster of one out of what a lost quorum has left.

use anyhow::{Result, bail};

use crate::args::RecoverArgs;

pub fn run(args: &RecoverArgs) -> Result<()> {
    if !args.force_new_cluster {
        let end = coracle_server::log_end(&args.data_dir)?;
        println!("member {} ({}) of cluster {}", end.member_id, end.name, end.cluster_id);
        println!(
            "  its log ends with entry {} of term {}; committed, as far as it knew: {}",
            end.index, end.term, end.commit
        );
        println!(
            "  of several members the one with the highest term, then the highest index, has everything"
        );
        bail!(
            "nothing was done. Recovering makes a new cluster of this one member, and the others are lost to it: say \
             --force-new-cluster. Where a quorum can still be started, start it instead"
        );
    }
    let done = coracle_server::force_new_cluster(&args.data_dir)?;
    let dir = args.data_dir.display();
    println!(
        "cluster {} made of member {} of cluster {}",
        done.cluster_id, done.old_member_id, done.old_cluster_id
    );
    println!("  kept: {} objects, the log up to entry {} of term {}", done.objects, done.index, done.term);
    if done.uncommitted > 0 {
        println!(
            "        its last {} entries were not known to be committed; they are kept, as they may have been",
            done.uncommitted
        );
    }
    println!("  it begins at revision {}: whoever watched the old one reads everything again", done.revision);
    println!(
        "  its only voter is member {} ({}); the CAs, kubeconfigs and nodes are the old ones",
        done.member_id, done.name
    );
    println!("  start it:");
    println!("    coracle control --data-dir {dir} --listen {}", done.address);
    println!("  further control nodes join with empty data dirs, also on the machines of the lost members:");
    println!(
        "    CORACLE_TOKEN=$(coracle token create --role control) coracle control --data-dir DIR --join {}",
        done.address
    );
    println!("  the old log is in {}; delete it when all is well", done.kept.display());
    Ok(())
}
