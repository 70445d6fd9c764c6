//! Much of what is harmless once.

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::json;
use tokio::{
    io::AsyncWriteExt,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Answers, CONNECTIONS, CORE, FLOOD, Stage, flood, tally};

/// Of 300 objects of 10 kB.
pub async fn lists(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    for number in 0..300 {
        let metadata = json!({"name": format!("listed-{number}")});
        let object = json!({"metadata": metadata, "data": {"a": "x".repeat(10_000)}});
        stage.post(&rest, CORE, "configmaps", &object).await?;
    }
    let path = stage.path(CORE, "configmaps");
    flood(&stage, move |rest| {
        let path = path.clone();
        async move { Ok(rest.call("GET", &path, Vec::new()).await?.0) }
    })
    .await
}

pub async fn large_bodies(stage: Stage) -> Result<String> {
    let metadata = json!({"name": "large", "namespace": stage.namespace});
    let data = json!({"a": "x".repeat(2_000_000)});
    let body =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}).to_string();
    let (body, path) = (Bytes::from(body), stage.path(CORE, "configmaps"));
    flood(&stage, move |rest| {
        let (body, path) = (body.clone(), path.clone());
        async move { Ok(rest.send_as("application/json", "POST", &path, body).await?.0) }
    })
    .await
}

/// They stay open to the end of the act, while an object that all of them watch is written.
pub async fn idle_watches(stage: Stage) -> Result<String> {
    let (mut open, mut answers) = (Vec::new(), Answers::default());
    let path = format!("{}?watch=1", stage.path(CORE, "configmaps"));
    for _ in 0..40 {
        let rest = stage.client.rest().await?;
        for _ in 0..50 {
            let answer = timeout(FLOOD, rest.send("GET", &path, Vec::new())).await.context("no answer");
            let answer = answer.and_then(|it| it);
            answers.add(answer.as_ref().map(|it| it.0).map_err(|error| anyhow::anyhow!("{error:#}")));
            open.extend(answer.map(|it| it.1));
        }
    }
    let rest = stage.client.rest().await?;
    stage.post(&rest, CORE, "configmaps", &json!({"metadata": {"name": "seen"}})).await?;
    let path = stage.path(CORE, "configmaps/seen");
    let begun = std::time::Instant::now();
    while begun.elapsed() < FLOOD {
        let value = format!("{:?}{}", begun.elapsed(), "x".repeat(10_000));
        let object = json!({"metadata": {"name": "seen"}, "data": {"a": value}});
        rest.call("PUT", &path, object.to_string().into()).await?;
    }
    Ok(answers.say())
}

/// They stay open for as long as a flood takes.
pub async fn unread_lists(stage: Stage) -> Result<String> {
    fill(&stage, 8, 0).await?;
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: {}\r\n\r\n",
        stage.path(CORE, "configmaps"),
        coracle_proto::tls::SERVER_NAME
    );
    let mut open = Vec::new();
    for _ in 0..260 {
        let mut stream = stage.client.raw().await?;
        stream.write_all(request.as_bytes()).await?;
        open.push(stream);
    }
    sleep(FLOOD).await;
    Ok(format!("{} connections", open.len()))
}

pub async fn pages(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let path = format!("{}?limit=1", stage.path(CORE, "configmaps"));
    let mut answers = Answers::default();
    for round in 0..8 {
        fill(&stage, 40, round).await?;
        answers.add(rest.call("GET", &path, Vec::new()).await.map(|it| it.0));
    }
    Ok(answers.say())
}

/// So many ConfigMaps of 1 MB, made or written anew.
async fn fill(stage: &Stage, count: usize, round: usize) -> Result<()> {
    let rest = stage.client.rest().await?;
    for number in 0..count {
        let metadata = json!({"name": format!("full-{number}"), "namespace": stage.namespace});
        let data = json!({"a": format!("{round}{}", "x".repeat(1_000_000))});
        let object = json!({"metadata": metadata, "data": data});
        match round {
            0 => _ = stage.post(&rest, CORE, "configmaps", &object).await?,
            _ => {
                let path = stage.path(CORE, &format!("configmaps/full-{number}"));
                let (status, _) = rest.call("PUT", &path, object.to_string().into()).await?;
                anyhow::ensure!(status == 200, "writing anew: HTTP {status}");
            }
        }
    }
    Ok(())
}

/// A call of gRPC whose message claims 64 MB, of which more and more is sent as far as the door takes it.
pub async fn anonymous_bodies(stage: Stage) -> Result<String> {
    let anonymous = stage.client.anonymous()?;
    let mut message = Vec::with_capacity(64 << 20);
    message.extend([0, 4, 0, 0, 0]);
    message.resize(64 << 20, 0);
    let message = Bytes::from(message);
    let mut sending = JoinSet::new();
    for _ in 0..2 * CONNECTIONS {
        let (client, message) = (anonymous.clone(), message.clone());
        sending.spawn(async move {
            let calling = async {
                let rest = client.rest().await?;
                Ok(rest.send_as("application/grpc", "POST", "/coracle.store.v1.Store/Txn", message).await?.0)
            };
            timeout(FLOOD, calling).await.context("no answer")?
        });
    }
    tally(sending).await
}
