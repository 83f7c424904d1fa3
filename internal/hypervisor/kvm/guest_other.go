//go:build !amd64

package kvm

import (
	"context"
	"errors"
)

func runGuest(context.Context) error {
	return errors.New("there is a test guest for x86_64 only")
}
