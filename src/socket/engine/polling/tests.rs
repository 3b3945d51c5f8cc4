//! How a flow changes its ways, without an engine.

use futures_util::FutureExt;

use super::*;

#[test]
fn a_session_that_the_engine_has_ended_is_not_taken_over_by_its_websocket() {
    let (flow, pipe) = (Flow::new(None), Arc::new(Pipe::new(None)));
    *flow.way() = Way::Held(Vec::new());
    assert!(flow.end(), "ours ends with it");
    assert!(!flow.take_over(&pipe, &[]));
    assert!(flow.pipe().is_none());
    assert_eq!(flow.send(&Frame::new("2[]")), Sent::Gone);
}

#[test]
fn a_session_that_its_websocket_has_taken_over_outlives_the_engines() {
    let (flow, pipe) = (Flow::new(None), Arc::new(Pipe::new(None)));
    *flow.way() = Way::Held(Vec::new());
    assert!(flow.take_over(&pipe, &["42[]".to_owned()]));
    assert!(!flow.end());
    assert_eq!(flow.send(&Frame::new("2[]")), Sent::Yes);
}

#[test]
fn a_connection_that_serves_others_by_now_is_not_cut_with_the_session() {
    let flow = Flow::new(None);
    let [polled, other] = [(); 2].map(|()| Arc::new(Link::default()));
    flow.begin_poll(Some(polled.clone()));
    flow.end_poll(Some(&polled), 1);
    flow.cut();
    assert!(!polled.is_killed());

    flow.begin_poll(Some(polled.clone()));
    flow.begin_poll(Some(other.clone()));
    flow.end_poll(Some(&polled), 1);
    flow.cut();
    assert_eq!((polled.is_killed(), other.is_killed()), (false, true));
}

#[test]
fn what_is_posted_waits_until_reading_goes_on_or_the_session_has_ended() {
    let ended = |flow: &Flow| assert!(flow.end());
    for go_on in [Flow::resume, ended] {
        let flow = Flow::new(None);
        flow.pause();
        let mut readable = Box::pin(flow.readable());
        assert!(readable.as_mut().now_or_never().is_none());
        go_on(&flow);
        assert!(readable.now_or_never().is_some());
    }
}
