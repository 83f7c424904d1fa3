//go:build e2e

package daemon_test

const whole = true
