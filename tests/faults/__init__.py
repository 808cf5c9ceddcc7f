"""Every fault named in the issue, at handshake, mid-epoch and result return; the undisturbed run is the oracle."""
