//! Who may read the node's metrics: whoever the control plane allows to. What it said of a token is good for a while
//! ([`Verdicts`]), in which nobody is asked.
//!
//! One question is asked at a time, so that strangers with tokens of their own making do not reach the control plane by the
//! node. Those whose tokens were good not long ago come before them, and who has given up waiting has the answer the next
//! time.

mod review;
mod verdicts;

use std::sync::Arc;

use coracle_fabric::Verdict;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

pub use self::review::Controls;
use self::verdicts::{Key, Verdicts};

/// Those who wait for a question, of either kind. Together they are fewer than the requests that the page takes at once.
const WAITING_MAX: usize = 6;

/// Judges of tokens. Clones are the same.
#[derive(Clone)]
pub struct Scrapers {
    verdicts: Arc<Mutex<Verdicts>>,
    /// Those whose tokens were good.
    returning: mpsc::Sender<Question>,
    strangers: mpsc::Sender<Question>,
}

struct Question {
    key: Key,
    token: String,
    answer: oneshot::Sender<Verdict>,
}

impl Scrapers {
    /// `ask` puts a question to the control plane. Asks as long as there is a clone of this.
    pub fn start<Q, F>(ask: Q) -> Self
    where
        Q: Fn(String) -> F + Send + 'static,
        F: Future<Output = Verdict> + Send + 'static,
    {
        let verdicts = Arc::<Mutex<Verdicts>>::default();
        let (returning, returned) = mpsc::channel(WAITING_MAX);
        let (strangers, strange) = mpsc::channel(WAITING_MAX);
        tokio::spawn(answer_all(ask, verdicts.clone(), returned, strange));
        Self { verdicts, returning, strangers }
    }

    pub async fn judge(&self, token: String) -> Verdict {
        let (key, now): (Key, _) = (Sha256::digest(&token).into(), Instant::now());
        let line = {
            let verdicts = self.verdicts.lock();
            if let Some(verdict) = verdicts.known(&key, now) {
                return verdict;
            }
            if verdicts.was_allowed(&key, now) { &self.returning } else { &self.strangers }
        };
        let (answer, answered) = oneshot::channel();
        match line.try_send(Question { key, token, answer }) {
            Ok(()) => answered.await.unwrap_or(Verdict::Unanswered),
            // As many as may wait already.
            Err(_) => Verdict::Unanswered,
        }
    }
}

/// Answers one question after the other.
async fn answer_all<Q, F>(
    ask: Q,
    verdicts: Arc<Mutex<Verdicts>>,
    mut returning: mpsc::Receiver<Question>,
    mut strangers: mpsc::Receiver<Question>,
) where
    Q: Fn(String) -> F,
    F: Future<Output = Verdict>,
{
    loop {
        let next = tokio::select! {
            biased;
            next = returning.recv() => next,
            next = strangers.recv() => next,
        };
        let Some(Question { key, token, answer }) = next else { return };
        // The one before may have asked the same.
        let known = verdicts.lock().known(&key, Instant::now());
        let verdict = match known {
            Some(verdict) => verdict,
            None => {
                let said = ask(token).await;
                verdicts.lock().note(key, said, Instant::now())
            }
        };
        // Who does not wait any more will come again.
        let _ = answer.send(verdict);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        sync::watch,
        time::{advance, timeout},
    };

    use super::*;

    /// A control plane that knows `reader`, and answers once it may.
    struct Plane {
        asked: Mutex<Vec<String>>,
        answers: watch::Sender<bool>,
        says: Mutex<Verdict>,
    }

    impl Plane {
        fn new() -> Arc<Self> {
            let says = Mutex::new(Verdict::Allowed);
            Arc::new(Self { asked: Mutex::default(), answers: watch::Sender::new(true), says })
        }

        fn scrapers(self: &Arc<Self>) -> Scrapers {
            let plane = self.clone();
            Scrapers::start(move |token| {
                let plane = plane.clone();
                async move {
                    plane.asked.lock().push(token.clone());
                    let _ = plane.answers.subscribe().wait_for(|answers| *answers).await;
                    let says = *plane.says.lock();
                    if token.starts_with("reader") || says == Verdict::Unanswered {
                        says
                    } else {
                        Verdict::Unknown
                    }
                }
            })
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().clone()
        }

        async fn until_asked(&self, count: usize) {
            while self.asked.lock().len() < count {
                tokio::task::yield_now().await;
            }
        }
    }

    fn judged(scrapers: &Scrapers, token: &str) -> tokio::task::JoinHandle<Verdict> {
        let (scrapers, token) = (scrapers.clone(), token.to_owned());
        tokio::spawn(async move { scrapers.judge(token).await })
    }

    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_asked_about_once_in_its_time() {
        let plane = Plane::new();
        let scrapers = plane.scrapers();
        let judge = async |token: &str| scrapers.judge(token.to_owned()).await;
        for _ in 0..3 {
            assert_eq!(judge("reader").await, Verdict::Allowed);
            assert_eq!(judge("other").await, Verdict::Unknown);
        }
        assert_eq!(plane.asked(), ["reader", "other"]);
        advance(Duration::from_secs(10)).await;
        assert_eq!((judge("other").await, judge("reader").await), (Verdict::Unknown, Verdict::Allowed));
        assert_eq!(plane.asked().len(), 3);
        advance(Duration::from_secs(50)).await;
        *plane.says.lock() = Verdict::Unanswered;
        assert_eq!(judge("reader").await, Verdict::Allowed, "nobody says otherwise");
        assert_eq!(judge("new").await, Verdict::Unanswered);
        assert_eq!(plane.asked().len(), 4, "it was just seen that nobody answers");
        advance(Duration::from_secs(10)).await;
        *plane.says.lock() = Verdict::Forbidden;
        assert_eq!(judge("reader").await, Verdict::Forbidden);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_tokens_asks_one_question_and_holds_up_no_reader() {
        let plane = Plane::new();
        let scrapers = plane.scrapers();
        assert_eq!(scrapers.judge("reader 1".into()).await, Verdict::Allowed);
        advance(Duration::from_secs(30)).await;
        assert_eq!(scrapers.judge("reader 2".into()).await, Verdict::Allowed);
        advance(Duration::from_secs(30)).await;
        plane.answers.send_replace(false);
        let first = judged(&scrapers, "x");
        plane.until_asked(3).await;
        let flood: Vec<_> = (0..50).map(|number| judged(&scrapers, &format!("x{number}"))).collect();
        settle().await;
        assert_eq!(plane.asked()[2..], ["x"]);
        let turned_away = flood.iter().filter(|task| task.is_finished()).count();
        assert_eq!(turned_away, 50 - WAITING_MAX);
        let known = timeout(Duration::ZERO, scrapers.judge("reader 2".into())).await;
        assert_eq!(known, Ok(Verdict::Allowed), "it waits for nobody");
        // Its time is over: it waits for the one question that is asked, and for no stranger behind that.
        let returning = judged(&scrapers, "reader 1");
        settle().await;
        plane.answers.send_replace(true);
        assert_eq!(returning.await.unwrap(), Verdict::Allowed);
        assert_eq!(plane.asked()[2..4], ["x", "reader 1"]);
        assert_eq!(first.await.unwrap(), Verdict::Unknown);
        for task in flood {
            assert!(matches!(task.await.unwrap(), Verdict::Unknown | Verdict::Unanswered));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_gave_up_waiting_has_the_answer_the_next_time() {
        let plane = Plane::new();
        let scrapers = plane.scrapers();
        plane.answers.send_replace(false);
        let impatient = judged(&scrapers, "reader");
        plane.until_asked(1).await;
        impatient.abort();
        settle().await;
        plane.answers.send_replace(true);
        settle().await;
        assert_eq!(scrapers.judge("reader".into()).await, Verdict::Allowed);
        assert_eq!(plane.asked(), ["reader"]);
    }
}
