//! Goal: a loop survives what its neighbours do not. Method: loops with a small engine, driven by their messages.

use super::*;
use crate::fake::FakeEngine;

const WAIT: Duration = Duration::from_secs(20);

fn definition(name: &str) -> Arc<ResourceDefinition> {
    let text = format!(r#"{{"name":"{name}","volumes":[{{"number":0,"minor":0}}]}}"#);
    Arc::new(serde_json::from_str(&text).unwrap())
}

fn surroundings(root: &std::path::Path) -> Surroundings {
    Surroundings {
        places: Places::new(root),
        handlers: Handlers::Run,
        handler_reports: broadcast::Sender::new(4),
        nbd_tcp: None,
        epoch: Instant::now(),
        record: Some(root.join("recordings")),
    }
}

fn files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Commands that a black box holds.
fn commands_in(bytes: &[u8]) -> usize {
    let mut reader = tandem_replicator::black_box::Reader::open(bytes).unwrap();
    let entries = std::iter::from_fn(|| reader.next().unwrap());
    let commands = entries.filter(|entry| {
        let tandem_replicator::black_box::Entry::Happened(_, event) = entry else {
            return false;
        };
        matches!(event, Event::Command { .. })
    });
    commands.count()
}

async fn report(handle: &LoopHandle) -> Option<Arc<Published>> {
    let (done, published) = oneshot::channel();
    handle.inbox.send(Message::Report(done)).await.ok()?;
    tokio::time::timeout(WAIT, published).await.ok()?.ok()?;
    Some(handle.published.borrow().clone())
}

#[test]
fn a_panic_ends_one_loop_and_leaves_its_history() {
    let root = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut one = spawn::<FakeEngine>(definition("one"), surroundings(root.path())).unwrap();
        let two = spawn::<FakeEngine>(definition("two"), surroundings(root.path())).unwrap();
        assert!(report(&one).await.is_some());
        let (sender, answer) = oneshot::channel();
        let command = Command::Invalidate {
            volume: VolumeNumber(0),
        };
        let message = Message::Command {
            command: Box::new(command),
            answer: sender,
        };
        one.inbox.send(message).await.unwrap();
        tokio::time::timeout(WAIT, answer).await.unwrap().unwrap();
        one.inbox.send(Message::Panic).await.unwrap();
        let failed = one
            .published
            .wait_for(|published| published.report.failed.is_some());
        let failed = tokio::time::timeout(WAIT, failed)
            .await
            .unwrap()
            .unwrap()
            .clone();
        assert!(failed.report.failed.as_ref().unwrap().contains("as asked"));
        assert!(report(&one).await.is_none());
        assert!(report(&two).await.is_some());
        let crashes = files(&Places::new(root.path()).crash_dir());
        let texts: Vec<_> = crashes
            .iter()
            .filter(|path| path.extension() == Some("txt".as_ref()))
            .collect();
        let history = std::fs::read_to_string(texts[0]).unwrap();
        assert!(history.contains("> command"), "{history}");
        assert!(history.contains("whole: everything since"), "{history}");
        // The same for the simulator, and once more in the recording that was asked for.
        let mut boxes = files(&root.path().join("recordings"));
        boxes.extend(
            crashes
                .into_iter()
                .filter(|path| path.extension() == Some("blackbox".as_ref())),
        );
        boxes.retain(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("one-")
        });
        assert_eq!(boxes.len(), 2, "{boxes:?}");
        for path in boxes {
            let commands = commands_in(&std::fs::read(&path).unwrap());
            assert_eq!(commands, 1, "{}", path.display());
        }
        two.inbox.send(Message::Quit).await.unwrap();
        two.thread.join().unwrap();
    });
}

#[test]
fn timers_fire_and_commands_are_answered() {
    let root = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let handle = spawn::<FakeEngine>(definition("r0"), surroundings(root.path())).unwrap();
        let (sender, answer) = oneshot::channel();
        let command = Command::Outdate {
            volume: VolumeNumber(0),
        };
        handle
            .inbox
            .send(Message::Command {
                command: Box::new(command),
                answer: sender,
            })
            .await
            .unwrap();
        let answer = tokio::time::timeout(WAIT, answer).await.unwrap().unwrap();
        assert_eq!(answer.number, 1);
    });
}
