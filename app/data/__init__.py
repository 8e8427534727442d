"""The data in MongoDB: schema, reading and seeding of the dataset, queries, search; the mongod of `medpix up`."""
