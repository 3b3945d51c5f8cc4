//! Accounts and logins.

use std::sync::Arc;

use tandem::model::{LoginId, Timestamp, UserId};
use tandem::store::{Bearer, Command, Reply};

use super::bed::{Bed, account, login, state, write};

on_every_store!(
    an_email_belongs_to_one_account,
    the_same_email_at_once_makes_one_account,
    a_login_is_good_until_it_ends,
    a_login_of_nobody_harms_no_neighbour,
);

fn email() -> String {
    format!("{}@example.org", uuid::Uuid::new_v4())
}

async fn an_email_belongs_to_one_account(bed: &Bed) {
    let email = email();
    let (first, second, third) = (account(&email), account(&email), account(&email));
    let user = first.account.user;

    let replies =
        bed.store.commit(&[Command::CreateAccount(first), Command::CreateAccount(second)]).await.unwrap();
    assert!(matches!(replies[..], [Reply::AccountCreated(true), Reply::AccountCreated(false)]));
    let replies = bed.store.commit(&[Command::CreateAccount(third)]).await.unwrap();
    assert!(matches!(replies[..], [Reply::AccountCreated(false)]));

    let kept = bed.store.account(&email).await.unwrap().unwrap();
    assert_eq!((kept.user, kept.email, kept.created_at), (user, email, Timestamp(1)));
    assert!(bed.store.account("nobody@example.org").await.unwrap().is_none());
    assert!(bed.store.account("nul\0@example.org").await.unwrap().is_none());
}

async fn the_same_email_at_once_makes_one_account(bed: &Bed) {
    let emails: Vec<_> = (0..20).map(|_| email()).collect();
    let other = bed.another().await;
    let batch = |reversed: bool| {
        let mut batch: Vec<_> = emails.iter().map(|email| Command::CreateAccount(account(email))).collect();
        if reversed {
            batch.reverse();
        }
        batch
    };

    let (forward, backward) = (batch(false), batch(true));
    let (one, two) = tokio::join!(bed.store.commit(&forward), other.commit(&backward));

    let created = [one.unwrap(), two.unwrap()].concat();
    let created = created.iter().filter(|reply| matches!(reply, Reply::AccountCreated(true))).count();
    assert_eq!(created, 20);
    other.close().await;
}

async fn a_login_is_good_until_it_ends(bed: &Bed) {
    let user = bed.user().await;
    let open = login(user);
    let id = open.login;
    bed.store.commit(&[Command::OpenLogin(open)]).await.unwrap();

    let good = async |user, login, at| {
        let bearer = Bearer { user, login, issued_at: Timestamp(0) };
        bed.store.is_authorized(&bearer, Timestamp(at)).await.unwrap()
    };
    assert!(good(user, None, 5).await);
    assert!(good(user, Some(id), 999).await);
    assert!(!good(user, Some(id), 1_000).await);
    assert!(!good(user, Some(LoginId::fresh()), 5).await);
    assert!(!good(UserId::fresh(), Some(id), 5).await);
    assert!(!good(UserId::fresh(), None, 5).await);
}

async fn a_login_of_nobody_harms_no_neighbour(bed: &Bed) {
    let user = bed.user().await;
    let batch = [Command::OpenLogin(login(UserId::fresh())), Command::Write(Arc::new(write(user, "a", "1")))];

    let replies = bed.store.commit(&batch).await.unwrap();

    assert!(matches!(replies[..], [Reply::Done, Reply::Written(Ok(_))]));
    assert_eq!(state(&*bed.store, user, "a").await.as_deref(), Some("1"));
}
