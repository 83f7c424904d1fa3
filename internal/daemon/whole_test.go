//go:build !e2e

package daemon_test

// whole says that long stories are told whole: with the tag e2e.
const whole = false
