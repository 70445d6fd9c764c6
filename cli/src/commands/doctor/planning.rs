//! How the controllers and the scheduler fare, by the metrics of the control node that leads.

use super::Finding::{self, Better, Fine, Wrong};
use crate::client::{Body, Cluster};

/// Planners of a cluster that is well are never behind for so long, in seconds.
const PLANNING_LAG_S_MAX: f64 = 10.0;

/// How the controllers of the control node that answers fare: of the leader, if it is that one.
pub async fn findings(cluster: &Cluster) -> Vec<Finding> {
    let request = http::Request::get("/metrics").body(Body::default());
    let Ok(request) = request else { return Vec::new() };
    match cluster.send(request).await {
        Ok((_, page)) => planning(&String::from_utf8_lossy(&page)),
        Err(error) => vec![Better(format!("the metrics of the control node cannot be read: {error:#}"))],
    }
}

fn planning(page: &str) -> Vec<Finding> {
    let metric = |name: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse::<f64>().ok())
    };
    if metric("coracle_server_is_leader") != Some(1.0) {
        return vec![Better("controllers are checked at the leader, which is another control node".into())];
    }
    let mut findings = Vec::new();
    for (planner, verb, keep) in [("controllers", "have", "keep"), ("scheduler", "has", "keeps")] {
        let lag = metric(&format!("coracle_planning_lag_seconds{{planner=\"{planner}\"}}")).unwrap_or(0.0);
        findings.push(if lag > PLANNING_LAG_S_MAX {
            Wrong(format!(
                "the {planner} {verb} been behind for {lag:.0} s: look for what makes it so much work (most events, largest \
                 namespace), or for a control node that is short of CPU"
            ))
        } else {
            Fine(format!("the {planner} {keep} up"))
        });
    }
    let unreadable = metric("coracle_planning_objects_unreadable").unwrap_or(0.0);
    if unreadable > 0.0 {
        findings.push(Wrong(format!(
            "{unreadable} objects cannot be read: `kubectl get events -A --field-selector reason=Unreadable` names them"
        )));
    }
    let restless = metric("coracle_planning_tasks_restless").unwrap_or(0.0);
    findings.push(if restless > 0.0 {
        Wrong(format!(
            "{restless} tasks of controllers write again and again though nothing else happens, by a fault of Coracle; they \
             are slowed down: `kubectl get events -A --field-selector reason=Restless` names their objects"
        ))
    } else {
        Fine("no controller writes for ever".into())
    });
    let panics = metric("coracle_planning_panics_total").unwrap_or(0.0);
    if panics > 0.0 {
        findings.push(Wrong(format!(
            "controllers or the scheduler have panicked {panics} times, by a fault of Coracle: the control node's log names \
             the tasks and pods"
        )));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planners_that_are_behind_are_wrong() {
        let page = "coracle_server_is_leader 1\ncoracle_planning_lag_seconds{planner=\"controllers\"} 31.5\n\
                    coracle_planning_lag_seconds{planner=\"scheduler\"} 0\ncoracle_planning_objects_unreadable 2\n\
                    coracle_planning_tasks_restless 1\n";
        let findings = planning(page);
        assert!(matches!(&findings[..], [Wrong(lag), Fine(_), Wrong(unreadable), Wrong(restless)]
            if lag.contains("behind for 32 s") && unreadable.starts_with("2 objects cannot be read")
                && restless.starts_with("1 tasks of controllers write again")));
        assert!(matches!(&planning("coracle_server_is_leader 0\n")[..], [Better(_)]));
    }
}
