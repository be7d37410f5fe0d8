-- A registry as hostmesh 0.1 made it, before there were grants: two hosts, and a ServiceEntry that selects one of them.
CREATE TABLE revision (number INTEGER NOT NULL);
INSERT INTO revision VALUES (0);
CREATE TABLE instances (
        id TEXT PRIMARY KEY, namespace TEXT NOT NULL, service TEXT NOT NULL, body TEXT NOT NULL
    ) WITHOUT ROWID;
CREATE INDEX instances_of_service ON instances (namespace, service);
CREATE TABLE services (
        namespace TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (namespace, name)
    ) WITHOUT ROWID;
CREATE TABLE vips (slot INTEGER PRIMARY KEY, host TEXT UNIQUE);
CREATE TABLE leases (owner TEXT PRIMARY KEY, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE resources (
        kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
        version INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, namespace, name)
    ) WITHOUT ROWID;
CREATE TABLE records (
        area TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, value TEXT NOT NULL,
        PRIMARY KEY (area, key)
    ) WITHOUT ROWID;
INSERT INTO instances VALUES ('default/reviews-vm1', 'default', 'reviews', '{"addresses":["10.77.0.3","fd77::3"],"health":"healthy","id":"default/reviews-vm1","labels":{"app":"reviews","version":"v1"},"locality":"lab/lab-1a","mtls":true,"namespace":"default","node":"vm1","owner":"istiod-71-aa","ports":[{"name":"http","number":9080,"protocol":"","targetPort":0}],"service":"reviews","serviceAccount":"bookinfo-reviews","weight":1,"workload":"reviews-vm1"}');
INSERT INTO services VALUES ('default', 'reviews', '{"name":"reviews","namespace":"default","ports":[{"name":"http","number":9080,"protocol":"","targetPort":0}],"slot":5}');
INSERT INTO vips VALUES (5, NULL);
INSERT INTO instances VALUES ('default/zratings-vm2', 'default', 'ratings', '{"addresses":["10.77.0.4"],"health":"healthy","id":"default/zratings-vm2","labels":{"app":"ratings"},"locality":"lab/lab-1a","mtls":true,"namespace":"default","node":"vm2","owner":"istiod-71-aa","ports":[{"name":"http","number":9080,"protocol":"","targetPort":0}],"service":"ratings","serviceAccount":"bookinfo-ratings","weight":1,"workload":"ratings-vm2"}');
INSERT INTO services VALUES ('default', 'ratings', '{"name":"ratings","namespace":"default","ports":[{"name":"http","number":9080,"protocol":"","targetPort":0}],"slot":6}');
INSERT INTO vips VALUES (6, NULL);
INSERT INTO resources VALUES ('ServiceEntry', 'default', 'ratings', 1, '{"annotations":{},"apiVersion":"networking.istio.io/v1","created":1764000000.0,"generation":1,"kind":"ServiceEntry","labels":{},"name":"ratings","namespace":"default","spec":{"hosts":["ratings.example.com"],"location":"MESH_INTERNAL","ports":[{"name":"http","number":443}],"resolution":"STATIC","workloadSelector":{"labels":{"app":"ratings"}}}}');
UPDATE revision SET number = 1;
PRAGMA application_id=1752003175;
PRAGMA user_version=1;
