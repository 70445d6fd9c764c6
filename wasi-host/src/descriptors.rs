//! The file descriptors of the process, shared out by what they are for.
//!
//! Whoever opens sockets because somebody else wants it takes them from here. The rest is left to what must not fail:
//! logs, volumes, artifacts, the link, and a control node in the same process.

mod holdings;

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use crate::refusals::{Refused, What};
use crate::serving::{Places, WeakPlaces};
use holdings::{Holdings, Sated};

/// Descriptors that count where the system names no limit.
const UNLIMITED: u64 = 1 << 20;

/// How long a connection that has to make room may take to go.
const ROOM_TIMEOUT: Duration = Duration::from_millis(100);

/// Connections that wait for another to make room, of all listeners with the purpose. They have no descriptor that counts
/// yet.
const WAITING_MAX: usize = 256;

/// What a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Clients of the gateway and of node ports: a half.
    Clients,
    /// Connections of pods to the outside: a quarter.
    Outside,
    /// Connections to the fabric's port, of whoever opens them: an eighth.
    Tunnels,
}

impl Purpose {
    fn what(self) -> What {
        match self {
            Purpose::Clients => What::ClientDescriptors,
            Purpose::Outside => What::OutsideDescriptors,
            Purpose::Tunnels => What::TunnelDescriptors,
        }
    }
}

/// On whose account a connection that came in has its descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// Who opened it; `None` for one who speaks for many others, or of whom nothing is to be counted.
    pub source: Option<IpAddr>,
    /// The namespace of the service behind the listener; `None` for the node's own listeners, of which the gateway is one.
    pub namespace: Option<Arc<str>>,
}

/// Whose listener it is: that of a namespace's service, or the node's own. It may become another's.
#[derive(Clone, Default)]
pub struct Owner {
    namespace: Arc<Mutex<Option<Arc<str>>>>,
}

impl Owner {
    /// From now on the listener is of a service of this namespace.
    pub fn set(&self, namespace: Arc<str>) {
        *self.namespace.lock() = Some(namespace);
    }

    /// The namespace, where it is one's.
    pub fn namespace(&self) -> Option<Arc<str>> {
        self.namespace.lock().clone()
    }
}

/// What is left of each share. Clones are the same.
#[derive(Clone)]
pub struct Descriptors {
    clients: Arc<Share>,
    outside: Arc<Share>,
    tunnels: Arc<Share>,
}

struct Share {
    size: usize,
    held: Mutex<Holdings>,
    /// Told of each descriptor that is free again.
    freed: Notify,
    waiting: Semaphore,
    /// The listeners that take from it, which can make room.
    listeners: Mutex<Vec<(WeakPlaces, Owner)>>,
}

/// A descriptor's place in its share, until it is dropped.
pub struct Descriptor {
    share: Arc<Share>,
    claim: Claim,
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        self.share.held.lock().give_back(&self.claim);
        self.share.freed.notify_waiters();
    }
}

/// One who waits for whatever becomes free: newcomers do not overtake it.
struct InLine<'a>(&'a Share);

impl<'a> InLine<'a> {
    fn join(share: &'a Share) -> Self {
        share.held.lock().in_line += 1;
        Self(share)
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.held.lock().in_line -= 1;
    }
}

impl Share {
    fn ask(self: &Arc<Self>, claim: &Claim, in_line: bool) -> Result<Descriptor, Sated> {
        self.held.lock().take(claim, in_line)?;
        Ok(Descriptor { share: Arc::clone(self), claim: claim.clone() })
    }

    /// Lets a connection that does nothing go, of those by which the claimant has all that it may have: that of the
    /// listener with the most of them which has been so for the longest. False where there is none.
    ///
    /// There may be thousands of listeners, and whoever comes while there is no room asks for this: of those that cannot be
    /// the one only a number is read.
    fn make_room(&self, sated: Sated, claim: &Claim) -> bool {
        let counts = |owner: &Owner| match sated {
            Sated::All | Sated::Source(_) => true,
            Sated::Lane => owner.namespace().is_some() == claim.namespace.is_some(),
            Sated::Namespace => owner.namespace() == claim.namespace,
        };
        let mut fullest: Option<(usize, Places)> = None;
        for (listener, owner) in &*self.listeners.lock() {
            let most = fullest.as_ref().map_or(0, |(idle, _)| *idle);
            let of_all = listener.idle();
            if of_all <= most || !counts(owner) {
                continue;
            }
            let Some(places) = listener.upgrade() else { continue };
            let idle = if let Sated::Source(source) = sated { places.idle_of(source) } else { of_all };
            if idle > most {
                fullest = Some((idle, places));
            }
        }
        fullest.is_some_and(|(_, places)| match sated {
            Sated::Source(source) => places.make_room_of(source),
            Sated::All | Sated::Lane | Sated::Namespace => places.make_room(),
        })
    }
}

impl Descriptors {
    /// Shares of so many descriptors; `None` for no limit.
    pub fn within(open_files: Option<u64>) -> Descriptors {
        let all = usize::try_from(open_files.unwrap_or(UNLIMITED).min(UNLIMITED)).unwrap_or(usize::MAX);
        let share = |part: usize| {
            let size = (all / part).max(1);
            let (held, waiting) = (Mutex::new(Holdings::new(size)), Semaphore::new(WAITING_MAX));
            Arc::new(Share { size, held, freed: Notify::new(), waiting, listeners: Mutex::default() })
        };
        Descriptors { clients: share(2), outside: share(4), tunnels: share(8) }
    }

    /// Those of this process, by its limit at the first call. However many nodes it runs, they share them.
    pub fn of_process() -> Descriptors {
        static OF_PROCESS: LazyLock<Descriptors> = LazyLock::new(|| {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            Descriptors::within(limit.current)
        });
        OF_PROCESS.clone()
    }

    /// One part of so many of those of this process, where it runs something else beside its nodes.
    pub fn part_of_process(parts: u64) -> Descriptors {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Descriptors::within(limit.current.map(|files| files / parts.max(1)))
    }

    /// One more, where there is one.
    pub fn take(&self, purpose: Purpose) -> Result<Descriptor, Refused> {
        let (share, claim) = (self.share(purpose), Claim::default());
        share.ask(&claim, false).map_err(|sated| share.held.lock().refused(purpose.what(), sated, &claim))
    }

    /// One more for a connection that came in, unless its source or namespace has its share. Where there is none, one that
    /// does nothing has to make room: of theirs where it is they who have all that they may have, else of whatever listener
    /// with the purpose.
    pub async fn take_for_client(&self, purpose: Purpose, claim: &Claim) -> Result<Descriptor, Refused> {
        let share = self.share(purpose);
        let sated = match share.ask(claim, false) {
            Ok(descriptor) => return Ok(descriptor),
            Err(sated) => sated,
        };
        let refused = || share.held.lock().refused(purpose.what(), sated, claim);
        let _waiting = share.waiting.try_acquire().map_err(|_| refused())?;
        if !share.make_room(sated, claim) {
            return Err(refused());
        }
        let in_line = (sated == Sated::All).then(|| InLine::join(share));
        let freed = async {
            loop {
                let freed = share.freed.notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                if let Ok(descriptor) = share.ask(claim, in_line.is_some()) {
                    return descriptor;
                }
                freed.await;
            }
        };
        tokio::time::timeout(ROOM_TIMEOUT, freed).await.map_err(|_| refused())
    }

    /// Lets a listener's connections make room for each other's and for those of other listeners.
    pub fn join(&self, purpose: Purpose, places: &Places, owner: &Owner) {
        let mut listeners = self.share(purpose).listeners.lock();
        // Listeners come and go as services do, also where descriptors never run short.
        listeners.retain(|(listener, _)| listener.upgrade().is_some());
        listeners.push((places.downgrade(), owner.clone()));
    }

    /// Descriptors that are taken for a purpose.
    pub fn taken(&self, purpose: Purpose) -> usize {
        self.share(purpose).held.lock().all()
    }

    /// Listeners that take from a purpose's share.
    pub fn listeners(&self, purpose: Purpose) -> usize {
        let listeners = self.share(purpose).listeners.lock();
        listeners.iter().filter(|(listener, _)| listener.upgrade().is_some()).count()
    }

    /// How many there are in all for a purpose.
    pub fn size(&self, purpose: Purpose) -> usize {
        self.share(purpose).size
    }

    fn share(&self, purpose: Purpose) -> &Arc<Share> {
        match purpose {
            Purpose::Clients => &self.clients,
            Purpose::Outside => &self.outside,
            Purpose::Tunnels => &self.tunnels,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_purpose_takes_what_another_needs() {
        let few = Descriptors::within(Some(8));
        let taken: Vec<Descriptor> = std::iter::from_fn(|| few.clone().take(Purpose::Clients).ok()).collect();
        assert_eq!((taken.len(), few.size(Purpose::Clients)), (4, 4));
        let outside: Vec<Descriptor> = std::iter::from_fn(|| few.take(Purpose::Outside).ok()).collect();
        assert_eq!(outside.len(), 2);
        assert!(few.take(Purpose::Tunnels).is_ok());
        drop(taken);
        assert!(few.take(Purpose::Clients).is_ok());
        assert!(Descriptors::within(None).size(Purpose::Tunnels) >= 1 << 16);
    }

    #[tokio::test]
    async fn a_connection_that_does_nothing_makes_room_for_one_that_comes() {
        let descriptors = Descriptors::within(Some(2));
        let places = Places::new(crate::serving::POD_PORT);
        descriptors.join(Purpose::Clients, &places, &Owner::default());
        let held = descriptors.take(Purpose::Clients).expect("the only one");
        let place = places.enter([10, 0, 0, 1].into()).expect("room");
        let at_work = place.begin().expect("room");
        assert!(
            descriptors.take_for_client(Purpose::Clients, &Claim::default()).await.is_err(),
            "it is at work"
        );
        drop(at_work);
        let idle = tokio::spawn(async move {
            place.lost().await;
            drop((held, place));
        });
        assert!(descriptors.take_for_client(Purpose::Clients, &Claim::default()).await.is_ok());
        idle.await.expect("it made room");
    }

    #[test]
    fn who_makes_room_is_found_without_asking_all_listeners() {
        let descriptors = Descriptors::within(Some(800));
        let (own, other) = (Arc::<str>::from("own"), Arc::<str>::from("other"));
        let client = |last: usize| IpAddr::from([192, 0, 2, u8::try_from(last).expect("few")]);
        let mut kept = Vec::new();
        // Services' listeners with one idle connection each, two with more of several clients.
        for (count, namespace) in std::iter::repeat_n((1, &other), 50).chain([(3, &own), (5, &other)]) {
            let (places, owner) = (Places::new(crate::serving::POD_PORT), Owner::default());
            owner.set(Arc::clone(namespace));
            descriptors.join(Purpose::Clients, &places, &owner);
            let idle: Vec<_> = (0..count).map(|at| places.enter(client(at)).expect("room")).collect();
            kept.push((places, idle));
        }
        let idle = |at: usize| kept[at].0.downgrade().idle();
        // Of all others nothing is asked that could have this one wait.
        let busy: Vec<_> = kept[..50].iter().map(|(places, _)| places.locked()).collect();
        let claim = Claim { source: None, namespace: Some(Arc::clone(&own)) };
        for (sated, expected) in
            [(Sated::All, [3, 4]), (Sated::Lane, [3, 3]), (Sated::Namespace, [2, 3]), (Sated::All, [2, 2])]
        {
            let (share, claim) = (Arc::clone(&descriptors.clients), claim.clone());
            let (told, made) = std::sync::mpsc::channel();
            std::thread::spawn(move || told.send(share.make_room(sated, &claim)));
            let made = made.recv_timeout(Duration::from_secs(60));
            assert_eq!((made, [idle(50), idle(51)]), (Ok(true), expected), "{sated:?}");
        }
        drop(busy);
        // A client's own is found where it is.
        for (expected, left) in [(true, 0), (false, 0)] {
            let made = descriptors.clients.make_room(Sated::Source(client(2)), &claim);
            let found: usize = kept.iter().map(|(places, _)| places.idle_of(client(2))).sum();
            assert_eq!((made, found), (expected, left));
        }
    }

    #[test]
    fn listeners_that_are_gone_are_forgotten_however_many_there_were() {
        let bounds = crate::serving::POD_PORT;
        let descriptors = Descriptors::within(Some(800));
        let stays = Places::new(bounds);
        descriptors.join(Purpose::Clients, &stays, &Owner::default());
        for _ in 0..1000 {
            descriptors.join(Purpose::Clients, &Places::new(bounds), &Owner::default());
        }
        assert_eq!(descriptors.listeners(Purpose::Clients), 1);
        assert!(descriptors.clients.listeners.lock().len() <= 2);
    }
}
