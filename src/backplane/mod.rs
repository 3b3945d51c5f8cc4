//! Carries events between nodes. (Being integrated.)
