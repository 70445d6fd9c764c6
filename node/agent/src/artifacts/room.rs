//! How much of the disk images may take, and when some have to go. Numbers only: nothing here looks at a disk.

/// Images take at most this part of the file system. Where more is wanted, those that nobody uses go; when it is passed
/// they go until the smaller part is left, so that not each pull removes one.
const PART: u64 = 4;
const PART_AFTER: u64 = 5;
/// Where less of the file system is free, whoever filled it, unused images go until so much is free again. Source:
/// kubelet's imageGCHighThresholdPercent and imageGCLowThresholdPercent.
const FREE_PERCENT: u64 = 15;
const FREE_PERCENT_AFTER: u64 = 20;
/// What no image takes: room for logs, for what the node has to remember and, under `coracle up`, for the control plane.
const KEPT_PART: u64 = 20;
const KEPT_BYTES_MAX: u64 = 1 << 30;

/// A file system, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    pub bytes: u64,
    pub bytes_free: u64,
}

/// Images on it, in bytes. Those that are on their way count as used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    pub all: u64,
    pub used: u64,
    /// Those that the namespace uses that wants one more.
    pub used_by_it: u64,
    /// Those on their way, of which some is on the disk already.
    pub coming: u64,
}

/// Why there is no room for one more image, whatever goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    #[error(
        "images that pods use take {used} of the {bound} bytes that this node has for images; remove pods, or give \
         the node a larger disk"
    )]
    Used { used: u64, bound: u64 },
    #[error(
        "the namespace's pods use images of {used} bytes, and {free} bytes are left for those of all; remove pods of \
         the namespace, or give the node a larger disk"
    )]
    Share { used: u64, free: u64 },
    #[error("{free} bytes of the disk are free, of which {kept} are kept for the node; make room on it")]
    Disk { free: u64, kept: u64 },
}

impl Space {
    fn bound(&self) -> u64 {
        self.bytes / PART
    }

    fn kept(&self) -> u64 {
        (self.bytes / KEPT_PART).min(KEPT_BYTES_MAX)
    }

    /// How many bytes of images that take so much should go, if they are not used. `going` says that some are going.
    pub fn surplus(&self, taken: u64, going: bool) -> u64 {
        let percent = |percent| self.bytes / 100 * percent;
        let (part, free) = if going { (PART_AFTER, FREE_PERCENT_AFTER) } else { (PART, FREE_PERCENT) };
        if taken <= self.bytes / part && self.bytes_free >= percent(free) {
            return 0;
        }
        let beyond = taken.saturating_sub(self.bytes / PART_AFTER);
        beyond.max(percent(FREE_PERCENT_AFTER).saturating_sub(self.bytes_free)).min(taken)
    }

    /// How many bytes have to go before an image of this size may come. A namespace has at most as much in use as stays
    /// free for all others.
    pub fn missing(&self, size: u64, taken: Taken) -> Result<u64, NoRoom> {
        let free = self.bound().saturating_sub(taken.used);
        if size > free {
            return Err(NoRoom::Used { used: taken.used, bound: self.bound() });
        }
        if taken.used_by_it > 0 && taken.used_by_it.saturating_add(size) > free {
            return Err(NoRoom::Share { used: taken.used_by_it, free });
        }
        let beyond = taken.all.saturating_add(size).saturating_sub(self.bound());
        let free = self.bytes_free.saturating_sub(taken.coming);
        Ok(beyond.max(self.kept().saturating_add(size).saturating_sub(free)))
    }

    /// What it means that nothing more can go.
    pub fn no_room(&self) -> NoRoom {
        NoRoom::Disk { free: self.bytes_free, kept: self.kept() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_go_beyond_one_mark_until_the_other() {
        let space = |bytes_free| Space { bytes: 1000, bytes_free };
        assert_eq!(space(500).surplus(250, false), 0);
        assert_eq!(space(500).surplus(251, false), 51);
        assert_eq!(space(500).surplus(201, true), 1);
        assert_eq!(space(500).surplus(200, true), 0);
        // Whoever filled the disk.
        assert_eq!(space(150).surplus(100, false), 0);
        assert_eq!(space(149).surplus(100, false), 51);
        assert_eq!(space(199).surplus(100, true), 1);
        assert_eq!(space(0).surplus(100, false), 100);
        assert_eq!(space(0).surplus(0, false), 0);
    }

    #[test]
    fn who_uses_much_leaves_as_much_to_others() {
        let space = Space { bytes: 4000, bytes_free: 3000 };
        let taken = |used, used_by_it| Taken { all: 1000, used, used_by_it, coming: 0 };
        assert_eq!(space.missing(100, taken(0, 0)), Ok(100));
        assert_eq!(space.missing(100, taken(400, 400)), Ok(100));
        assert_eq!(space.missing(300, taken(400, 400)), Err(NoRoom::Share { used: 400, free: 600 }));
        assert_eq!(space.missing(600, taken(400, 0)), Ok(600));
        assert_eq!(space.missing(601, taken(400, 0)), Err(NoRoom::Used { used: 400, bound: 1000 }));
        // The node's own part of a disk that others filled.
        let full = Space { bytes: 4000, bytes_free: 300 };
        let taken = Taken { all: 100, used: 0, used_by_it: 0, coming: 50 };
        assert_eq!(full.missing(50, taken), Ok(0));
        assert_eq!(full.missing(100, taken), Ok(50));
        assert_eq!(full.no_room(), NoRoom::Disk { free: 300, kept: 200 });
        let large = Space { bytes: 1 << 50, bytes_free: 1 << 30 };
        assert_eq!(large.missing(1, Taken::default()), Ok(1));
    }
}
