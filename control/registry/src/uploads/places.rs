//! Who may have an upload under way: there are so many places, and none is kept by who does not use it.

use std::collections::BTreeMap;

use tokio::time::Instant;

/// Uploads under way at a time, of all and of one user.
pub const UPLOADS_MAX: usize = 64;
pub const USER_UPLOADS_MAX: usize = 48;

/// An upload under way.
#[derive(Clone, Copy)]
pub struct Occupant<'a> {
    pub id: &'a str,
    pub user: &'a str,
    /// `None` while a request writes.
    pub idle_since: Option<Instant>,
}

/// Where an upload may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Free,
    /// In the place of this one, which is idle.
    Of(String),
    /// All are being written.
    None,
}

/// A place for an upload of a user. Who has as many as they may have gives one of theirs; else who has the most does.
pub fn find<'a>(occupants: impl Iterator<Item = Occupant<'a>>, user: &str) -> Place {
    let occupants: Vec<Occupant> = occupants.collect();
    let mut counts = BTreeMap::<&str, usize>::new();
    occupants.iter().for_each(|occupant| *counts.entry(occupant.user).or_default() += 1);
    let is_own_turn = counts.get(user).is_some_and(|own| *own >= USER_UPLOADS_MAX);
    if !is_own_turn && occupants.len() < UPLOADS_MAX {
        return Place::Free;
    }
    let idle = occupants.iter().filter_map(|occupant| Some((occupant, occupant.idle_since?)));
    let idle = idle.filter(|(occupant, _)| !is_own_turn || occupant.user == user);
    let longest = idle.max_by(|(one, since), (other, others)| {
        counts[one.user].cmp(&counts[other.user]).then(others.cmp(since))
    });
    longest.map_or(Place::None, |(occupant, _)| Place::Of(occupant.id.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn now() -> Instant {
        Instant::now() + Duration::from_secs(1000)
    }

    /// So many of a user's uploads, the first of which is idle the longest.
    fn of(user: &'static str, count: usize, now: Instant) -> Vec<(String, &'static str, Option<Instant>)> {
        let idle = |n: usize| now - Duration::from_secs((count - n) as u64);
        (0..count).map(|n| (format!("{user}{n}"), user, Some(idle(n)))).collect()
    }

    fn find(uploads: &[(String, &'static str, Option<Instant>)], user: &str) -> Place {
        let occupants =
            uploads.iter().map(|(id, user, idle_since)| Occupant { id, user, idle_since: *idle_since });
        super::find(occupants, user)
    }

    #[test]
    fn the_oldest_idle_upload_makes_room() {
        let mut uploads = of("a", USER_UPLOADS_MAX - 1, now());
        assert_eq!(find(&uploads, "a"), Place::Free);
        uploads = of("a", USER_UPLOADS_MAX, now());
        assert_eq!(find(&uploads, "a"), Place::Of("a0".into()));
        assert_eq!(find(&uploads, "b"), Place::Free);
        uploads[0].2 = None;
        assert_eq!(find(&uploads, "a"), Place::Of("a1".into()), "what is being written stays");
    }

    #[test]
    fn who_has_the_most_gives_way_to_others() {
        let now = now();
        let mut uploads =
            [of("b", UPLOADS_MAX - USER_UPLOADS_MAX, now), of("a", USER_UPLOADS_MAX, now)].concat();
        assert_eq!(find(&uploads, "c"), Place::Of("a0".into()));
        assert_eq!(find(&uploads, "b"), Place::Of("a0".into()));
        uploads.iter_mut().filter(|upload| upload.1 == "a").for_each(|upload| upload.2 = None);
        assert_eq!(find(&uploads, "c"), Place::Of("b0".into()));
        assert_eq!(find(&uploads, "a"), Place::None, "a user has their own at most");
        uploads.iter_mut().for_each(|upload| upload.2 = None);
        assert_eq!(find(&uploads, "c"), Place::None);
    }
}
