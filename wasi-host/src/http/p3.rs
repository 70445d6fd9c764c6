//! `wasi:http/handler` of 0.3: a bounded pool of instances, each of which serves many requests, several at once.
//!
//! An instance that has served its share is replaced, so that what a guest leaks or remembers does not last; the
//! share is jittered, so that instances are not replaced all at once. An idle pool is empty.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use wasmtime::AsContextMut;
use wasmtime::component::Accessor;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p3::Request;
use wasmtime_wasi_http::p3::bindings::Service;

use super::delivery::Deliveries;
use super::{Answer, Call, Failed, Handover, HttpError, NoResponse, Server, ended, unavailable};
use crate::artifact::Pre;
use crate::executor::JoinHandle;
use crate::exit;
use crate::linker::{State, make_room_for_tasks};
use crate::net::{HttpBody, RequestId};
use crate::refusals::{Bound, Refused, What};
use crate::seats::{NoSeat, Seat};
use crate::serving::PROBES_MAX;

/// Requests that one instance serves in its life, and how many fewer it may be.
const REUSE_MAX: u32 = 128;
const REUSE_JITTER: u32 = 32;

/// Requests of clients that one instance serves at once, and beside them what the node asks it.
const CONCURRENT_MAX: u32 = 16;
const CONCURRENT_WITH_PROBES_MAX: u32 = CONCURRENT_MAX + PROBES_MAX as u32;

/// Instances of one container.
const WORKERS_MAX: usize = 128;

/// Below so many instances a request goes to a new one rather than to one that is busy.
const SPREAD_WORKERS: usize = 4;

/// How long an instance without a request is kept, and how often it is looked at whether it has to make room for others.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// Ends when the request's body has been sent to the guest, or could not be.
type Sent = std::pin::Pin<Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>>;

/// Requests that so many instances serve at once.
pub(super) fn requests_max(instances: usize) -> usize {
    instances.min(WORKERS_MAX) * CONCURRENT_MAX as usize
}

/// One container's instances that accept requests.
#[derive(Default)]
pub(super) struct Pool {
    workers: Mutex<Vec<Arc<Worker>>>,
}

/// One instance, as its callers see it.
struct Worker {
    calls: mpsc::Sender<Call>,
    /// Requests given to it; at most `reuse_max`.
    taken: AtomicU32,
    reuse_max: u32,
    /// Callers that wait for their response, or for the end of its body.
    waiting: AtomicU32,
    /// A request's time ran out in it, or its caller went away: it gets no more, and is ended when nobody waits for
    /// it any longer, at the latest when the time of all its requests is over.
    stuck: AtomicBool,
    /// When the time of the last of its requests is over.
    last_deadline: Mutex<Instant>,
    /// Requests that the guest has and has not answered.
    unanswered: Mutex<Vec<RequestId>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Serves one request by an instance of the pool, `again` where another ended before it came to it, and waits for the
/// response's head. The second part is to be kept
/// until the response's body has ended.
pub(super) async fn call(
    server: &Arc<Server>,
    call: Call,
    response: oneshot::Receiver<Answer>,
    deadline: Instant,
    again: bool,
) -> Result<(http::Response<HttpBody>, Waiting), NoResponse> {
    let Some(worker) = dispatch(server, call, deadline, again) else {
        return Err(match response.await {
            Ok(Err(refused)) => refused,
            Ok(Ok(_)) | Err(_) => unavailable("the instance is not serving").into(),
        });
    };
    let mut waiting = Waiting { server: Arc::clone(server), worker, answered: false };
    match tokio::time::timeout_at(deadline.into(), response).await {
        Err(_) => Err(HttpError::TimedOut.into()),
        Ok(response) => {
            waiting.answered = true;
            let response = response.unwrap_or_else(|_| {
                let has_ended = waiting.server.sandbox.ended.is_cancelled();
                // Else its instance has, while it served the request, and has said so in the log.
                Err(if has_ended { ended() } else { HttpError::Failed }.into())
            })?;
            Ok((response, waiting))
        }
    }
}

/// One caller of a worker.
pub(super) struct Waiting {
    server: Arc<Server>,
    worker: Arc<Worker>,
    answered: bool,
}

impl Waiting {
    /// What was waited for does not come: the instance is stuck.
    pub(super) fn give_up(&mut self) {
        self.answered = false;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.answered && !self.worker.stuck.swap(true, Ordering::SeqCst) {
            self.server.pool.remove(&self.worker);
            // Others' responses may still be on their way from it, but not for ever.
            let worker = Arc::clone(&self.worker);
            let deadline = *worker.last_deadline.lock();
            self.server.sandbox.host.runtime.spawn(async move {
                tokio::time::sleep_until(deadline.into()).await;
                worker.abort();
            });
        }
        let last = self.worker.waiting.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.worker.stuck.load(Ordering::SeqCst) {
            self.worker.abort();
        }
    }
}

impl Worker {
    /// One request less of this name, which clients may give to several.
    fn answered(&self, id: RequestId) {
        let mut unanswered = self.unanswered.lock();
        if let Some(at) = unanswered.iter().position(|other| *other == id) {
            unanswered.swap_remove(at);
        }
    }

    fn abort(&self) {
        if let Some(task) = self.task.lock().as_ref() {
            task.abort();
        }
    }
}

impl Pool {
    fn remove(&self, worker: &Arc<Worker>) {
        self.workers.lock().retain(|other| !Arc::ptr_eq(other, worker));
    }
}

/// Gives the call to an idle instance, a new one, or the least busy one; none where it had to be refused. One that is
/// given `again` has to share no instance with those who may end it, as long as there may be another. Where there is no
/// seat for another, those that there are have to do.
fn dispatch(server: &Arc<Server>, mut call: Call, deadline: Instant, again: bool) -> Option<Arc<Worker>> {
    let concurrent_max = if call.is_probe() { CONCURRENT_WITH_PROBES_MAX } else { CONCURRENT_MAX };
    let mut workers = server.pool.workers.lock();
    loop {
        let least = workers.iter().min_by_key(|worker| worker.waiting.load(Ordering::SeqCst)).cloned();
        let (worker, is_new) = match least {
            Some(worker) if worker.waiting.load(Ordering::SeqCst) == 0 => (worker, false),
            Some(worker)
                if workers.len() >= if again { WORKERS_MAX } else { SPREAD_WORKERS }
                    && worker.waiting.load(Ordering::SeqCst) < concurrent_max =>
            {
                (worker, false)
            }
            _ if workers.len() >= WORKERS_MAX => {
                let busy = Refused::full(What::Instances, Bound::Container, WORKERS_MAX);
                call.refuse(HttpError::Unavailable { reason: server.refused(busy) });
                return None;
            }
            least => match server.sandbox.share.take() {
                Ok(seat) => (spawn(server, seat, deadline), true),
                Err(NoSeat(full)) => match least {
                    Some(worker) if worker.waiting.load(Ordering::SeqCst) < concurrent_max => (worker, false),
                    _ => {
                        call.refuse(HttpError::Unavailable { reason: server.refused(full) });
                        return None;
                    }
                },
            },
        };
        // Counted before it has the call, which it may be done with at once.
        worker.waiting.fetch_add(1, Ordering::SeqCst);
        call = match worker.calls.try_send(call) {
            Ok(()) => {
                if is_new {
                    workers.push(Arc::clone(&worker));
                }
                let mut last_deadline = worker.last_deadline.lock();
                *last_deadline = (*last_deadline).max(deadline);
                drop(last_deadline);
                if worker.taken.fetch_add(1, Ordering::SeqCst) + 1 == worker.reuse_max {
                    workers.retain(|other| !Arc::ptr_eq(other, &worker));
                }
                return Some(worker);
            }
            // It ended, or its queue is full of requests that nobody waits for any more: there are others.
            Err(mpsc::error::TrySendError::Full(call) | mpsc::error::TrySendError::Closed(call)) => {
                worker.waiting.fetch_sub(1, Ordering::SeqCst);
                workers.retain(|other| !Arc::ptr_eq(other, &worker));
                if is_new {
                    call.refuse(unavailable("the instance is not serving"));
                    return None;
                }
                call
            }
        };
    }
}

fn spawn(server: &Arc<Server>, seat: Seat, deadline: Instant) -> Arc<Worker> {
    let (calls, queue) = mpsc::channel(CONCURRENT_WITH_PROBES_MAX as usize);
    let worker = Arc::new(Worker {
        calls,
        taken: AtomicU32::new(0),
        reuse_max: REUSE_MAX - rand::random_range(0..REUSE_JITTER),
        waiting: AtomicU32::new(0),
        stuck: AtomicBool::new(false),
        last_deadline: Mutex::new(deadline),
        unanswered: Mutex::default(),
        task: Mutex::new(None),
    });
    let sandbox = &server.sandbox;
    let (serving, own) = (Arc::clone(server), Arc::clone(&worker));
    let task = sandbox
        .host
        .executor
        .spawn(&sandbox.group, None, async move { run(&serving, &own, seat, queue).await });
    *worker.task.lock() = Some(task);
    worker
}

/// One instance's life.
async fn run(server: &Server, worker: &Arc<Worker>, seat: Seat, mut queue: mpsc::Receiver<Call>) {
    let ended = serve(server, worker, seat, &mut queue).await;
    server.pool.remove(worker);
    queue.close();
    let Err(error) = ended else {
        return;
    };
    // Those in the queue came too late, and may be served by another; those being served learn it from their reply being
    // dropped.
    let mut waiting = Vec::new();
    while let Ok(call) = queue.try_recv() {
        waiting.push(call);
    }
    let mut unanswered = std::mem::take(&mut *worker.unanswered.lock());
    unanswered.extend(waiting.iter().filter_map(Call::id));
    let failed = match error {
        Ended::NotBegun(reason) => Failed::ForTheHost(reason),
        Ended::Failed(error) => server.failed(&error, &unanswered),
    };
    for call in waiting {
        call.refuse(failed.clone().told());
    }
}

/// Why an instance serves no more.
enum Ended {
    NotBegun(String),
    Failed(wasmtime::Error),
}

async fn serve(
    server: &Server,
    worker: &Arc<Worker>,
    seat: Seat,
    queue: &mut mpsc::Receiver<Call>,
) -> Result<(), Ended> {
    let Pre::HttpP3(pre) = &server.sandbox.artifact.pre else {
        return Err(Ended::NotBegun("not an HTTP component of WASI 0.3".to_owned()));
    };
    let makes_room = !seat.is_first();
    let mut store = server.sandbox.store(seat).map_err(|error| Ended::NotBegun(error.to_string()))?;
    let service = pre.instantiate_async(&mut store).await.map_err(Ended::Failed)?;
    let deliveries = Deliveries::new(&server.sandbox.account);
    let (service, collecting) = (&service, &deliveries);
    let served = store.run_concurrent(async |store| {
        accept(server, worker, makes_room, queue, store, service, collecting).await?;
        // What the guest does after its responses is done before its instance goes.
        std::future::poll_fn(|context| store.poll_no_interesting_tasks(context)).await;
        wasmtime::error::Ok(())
    });
    deliveries.drive(served).await.flatten().map_err(Ended::Failed)
}

/// Takes requests until the instance has served its share or was idle for long, or, where it `makes_room`, others found
/// no seat while it was idle.
async fn accept(
    server: &Server,
    worker: &Arc<Worker>,
    makes_room: bool,
    queue: &mut mpsc::Receiver<Call>,
    store: &Accessor<State>,
    service: &Service,
    deliveries: &Deliveries,
) -> wasmtime::Result<()> {
    let mut serving = FuturesUnordered::new();
    let mut received = 0;
    let seats = &server.sandbox.host.seats;
    let (mut idle, mut refusals) = (Duration::ZERO, seats.refusals());
    loop {
        let accepting = received < worker.reuse_max;
        tokio::select! {
            biased;
            Some(served) = serving.next(), if !serving.is_empty() => served?,
            call = queue.recv(), if accepting && serving.len() < CONCURRENT_WITH_PROBES_MAX as usize => match call {
                Some(call) => {
                    received += 1;
                    idle = Duration::ZERO;
                    serving.push(handle((server, worker), store, service, call, deliveries));
                }
                None => received = worker.reuse_max,
            },
            () = tokio::time::sleep(IDLE_LOOK), if accepting && serving.is_empty() => {
                idle += IDLE_LOOK;
                let wanted = std::mem::replace(&mut refusals, seats.refusals()) != refusals;
                if idle < IDLE_TIMEOUT && !(makes_room && wanted) {
                    continue;
                }
                // Under the pool's lock: no call can come between the look and the removal.
                let mut workers = server.pool.workers.lock();
                if queue.is_empty() {
                    workers.retain(|other| !Arc::ptr_eq(other, worker));
                    received = worker.reuse_max;
                }
            }
            else => return Ok(()),
        }
    }
}

/// Serves one request. An error is a trap, and the end of the instance.
async fn handle(
    (server, worker): (&Server, &Worker),
    store: &Accessor<State>,
    service: &Service,
    call: Call,
    deliveries: &Deliveries,
) -> wasmtime::Result<()> {
    let may_begin = store
        .with(|mut store| make_room_for_tasks(&mut store.as_context_mut()) && store.data_mut().may_grow());
    if !may_begin {
        call.refuse(unavailable("its instance holds all of the host's memory that it may"));
        return Ok(());
    }
    let Some(Handover { request, id, is_head, reply, permit }) = call.hand_over() else {
        return Ok(());
    };
    worker.unanswered.lock().push(id);
    let (request, sent) = store.with(|mut store| {
        let (request, sent) = Request::from_http(store.data_mut().http().hooks, request);
        let sent: Sent = Box::pin(sent);
        (request, sent)
    });
    let answered = match service.handle(store, request).await? {
        Ok(response) => Ok(store.with(|store| response.into_http(store, sent))?),
        Err(code) => Err(code),
    };
    worker.answered(id);
    match answered {
        Ok(response) => deliveries.begin(response, is_head, reply),
        Err(code) => {
            let code = exit::truncate(format!("{code:?}"));
            server.log_failure(&[id], &format!("it answered with the error {code}"));
            // Whoever asked may have gone away.
            let _ = reply.send(Err(HttpError::Failed.into()));
        }
    }
    drop(permit);
    Ok(())
}
