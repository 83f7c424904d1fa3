package store

import (
	"context"
	"database/sql"
)

// Conn gives a connection of the pool to tests.
func (s *Store) Conn(ctx context.Context) (*sql.Conn, error) { return s.db.Conn(ctx) }

// MigrateTo runs one more migration than this build knows, as the next build would.
func (s *Store) MigrateTo(ctx context.Context, stmt string) error {
	steps, err := loadMigrations()
	if err != nil {
		return err
	}
	return s.migrateWith(ctx, append(steps, stmt))
}
