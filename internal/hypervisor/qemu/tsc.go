package qemu

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// tscWindow is how long the TSC is compared with the clock: with samples good
// to 100 ns that is two parts in a million.
const tscWindow = 60 * time.Millisecond

// tscStep is what the measured rate is rounded to, so that two measurements
// of one host agree: a host's rate belongs to a template's key.
const tscStep = 100 // kHz

// measureTSC gives the rate of this host's time stamp counter in kHz, 0 where
// there is none. It is measured, for what the kernel knows of it may be hidden
// or missing in a container or VM.
func measureTSC(ctx context.Context) (uint64, error) {
	if !hasTSC {
		return 0, nil
	}
	t0, c0, err := sampleTSC()
	if err != nil {
		return 0, err
	}
	wait := time.NewTimer(tscWindow)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	t1, c1, err := sampleTSC()
	if err != nil {
		return 0, err
	}
	if t1 <= t0 || c1 <= c0 {
		return 0, nil // a counter that stands or runs backwards is of no use
	}
	khz := float64(c1-c0) / float64(t1-t0) * 1e6
	return uint64(khz/tscStep+0.5) * tscStep, nil
}

// sampleTSC reads clock and counter as close together as it can.
func sampleTSC() (nanos int64, count uint64, err error) {
	best := int64(1) << 62
	for range 64 {
		before, err := monotonic()
		if err != nil {
			return 0, 0, err
		}
		c := rdtsc()
		after, err := monotonic()
		if err != nil {
			return 0, 0, err
		}
		if d := after - before; d < best {
			best, nanos, count = d, before+d/2, c
		}
	}
	return nanos, count, nil
}

// monotonic is the clock that NTP does not slew.
func monotonic() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	return ts.Nano(), nil
}
